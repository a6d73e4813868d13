"""Test the meaning of every mask value on small trees in the official formats of the benchmarks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.data.benchmarks import BENCHMARKS, SPECS
from fusioner.data.classes import COCO_CLASSES, read_names
from fusioner.data.folds import published_pairs
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError

STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TREES = {  # name -> images, masks, mask values in the order of classes, ignored values, split, number of images
    "ade150": ("ADEChallengeData2016/images/validation/{}.jpg", "ADEChallengeData2016/annotations/validation/{}.png"),
    "ade847": ("ADE20K_2021_17_01/images_detectron2/validation/{}.jpg",
               "ADE20K_2021_17_01/annotations_detectron2/validation/{}.tif"),
    "context59": ("VOCdevkit/VOC2010/JPEGImages/{}.jpg", "VOCdevkit/VOC2010/SegmentationClassContext/{}.png"),
    "context60": ("VOCdevkit/VOC2010/JPEGImages/{}.jpg", "VOCdevkit/VOC2010/SegmentationClassContext/{}.png"),
    "context459": ("VOCdevkit/VOC2010/JPEGImages/{}.jpg",
                   "VOCdevkit/VOC2010/annotations_detectron2/pc459_val/{}.tif"),
    "coco-stuff": ("images/val2017/{}.jpg", "annotations/val2017/{}.png"),
    "coco-object": ("images/val2017/{}.jpg", "annotations/val2017/{}.png"),
    "cityscapes": ("leftImg8bit/val/ulm/{}_leftImg8bit.png", "gtFine/val/ulm/{}_gtFine_labelIds.png"),
    "camvid": ("val/{}.png", "valannot/{}.png"),
}  # fmt: skip
CLASS_VALUES = {
    "ade150": range(1, 151),
    "ade847": range(847),
    "context59": range(1, 60),
    "context60": range(1, 60),
    "context459": range(459),
    "coco-stuff": [i for i in range(182) if i not in STUFF_GAPS],
    "coco-object": [i for i in range(91) if i not in STUFF_GAPS],
    "cityscapes": CITYSCAPES_IDS,
    "camvid": range(11),
}
UNSCORED = {
    "ade150": (0, 255), "ade847": (65535,), "context59": (0, 255), "context60": (255,), "context459": (459, 65535),
    "coco-stuff": (255,),
    "cityscapes": (0, 4, 9, 30, 255), "camvid": (11, 255),
}  # fmt: skip
NO_CLASS = {"ade150": 151, "ade847": 847, "context59": 60, "context60": 60, "context459": 460, "coco-stuff": 11,
            "coco-object": 25, "cityscapes": 34, "camvid": 12}  # fmt: skip


def add(root: Path, name: str, image: str, values: object, split: str = "val") -> None:
    """Write an image whose mask has these values in one row."""
    pixels = np.array([list(values)])  # pyright: ignore[reportArgumentType]
    picture, mask = (root / pattern.format(image) for pattern in TREES[name])
    if split != "val":
        picture, mask = (
            Path(str(p).replace("validation", "training").replace("val", "train")) for p in (picture, mask)
        )
    for path in (picture, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (pixels.shape[1], 1), (9, 90, 200)).save(picture)
    Image.fromarray(pixels.astype(np.uint8 if pixels.max() < 256 else np.uint16)).save(mask)
    if name in ("context59", "context60"):
        lists = root / "VOCdevkit" / "VOC2010" / "ImageSets" / "SegmentationContext"
        lists.mkdir(parents=True, exist_ok=True)
        with (lists / f"{split}.txt").open("a") as file:
            file.write(f"{image}\n")


@pytest.mark.parametrize("name", TREES)
def test_every_value_of_the_official_masks_is_its_class(tmp_path: Path, name: str):
    add(tmp_path, name, "a_000001", CLASS_VALUES[name])
    data = open_dataset(name, tmp_path, "val")
    rgb, mask = data.read(data.items[0])
    assert [item.id for item in data.items] == ["a_000001"]
    assert rgb.shape[:2] == mask.shape
    np.testing.assert_array_equal(mask[0], np.arange(1, len(data.classes)))
    assert data.class_ids == tuple(range(1, len(data.classes)))
    assert len(data.prompts) == len(data.classes) == len(set(data.prompts))
    assert not data.problems
    assert data.ignore_unlabeled == (name not in ("coco-object", "context60"))


@pytest.mark.parametrize("name", UNSCORED)
def test_unlabelled_pixels_are_ignored(tmp_path: Path, name: str):
    add(tmp_path, name, "a", UNSCORED[name])
    data = open_dataset(name, tmp_path, "val")
    assert set(np.unique(data.read_mask(data.items[0]))) == {data.ignore}


@pytest.mark.parametrize("name", NO_CLASS)
def test_an_unknown_mask_value_is_reported_with_its_file(tmp_path: Path, name: str):
    add(tmp_path, name, "a", [NO_CLASS[name]])
    data = open_dataset(name, tmp_path, "val")
    with pytest.raises(FusionerError, match=rf"holds value {NO_CLASS[name]}, which is no class of {name}"):
        data.read(data.items[0])


def test_stuff_and_unlabeled_are_the_background_of_coco_object(tmp_path: Path):
    add(tmp_path, "coco-object", "a", [0, 89, 91, 181, 255])
    data = open_dataset("coco-object", tmp_path, "val")
    np.testing.assert_array_equal(data.read_mask(data.items[0]), [[1, 80, 0, 0, 0]])
    assert data.classes == COCO_CLASSES
    assert data.include_background


@pytest.mark.parametrize("name", TREES)
def test_splits_and_files_without_partner(tmp_path: Path, name: str):
    value = next(iter(CLASS_VALUES[name]))
    for image, split in (("a", "val"), ("b", "val"), ("c", "train")):
        add(tmp_path, name, image, [value], split)
    (tmp_path / TREES[name][0].format("b")).unlink()
    data = open_dataset(name, tmp_path, "val")
    assert [item.id for item in data.items] == ["a"]
    assert "b" in data.problems[0]
    assert [item.id for item in open_dataset(name, tmp_path).items] == ["c", "a"]
    with pytest.raises(FusionerError, match="no split 'dev'; choose train or val"):
        open_dataset(name, tmp_path, "dev")
    (tmp_path / TREES[name][1].format("a")).unlink()
    with pytest.raises(FusionerError, match="no image of split val"):
        open_dataset(name, tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "count", "examples"),
    [
        ("ade150", 150, {1: "wall", 13: "person", 150: "flag"}),
        ("ade847", 847, {1: "wall", 2: "building", 192: "traveling bag", 847: "adding machine"}),
        ("context59", 59, {1: "aeroplane", 17: "chair", 59: "wood"}),
        ("context459", 459, {1: "accordion", 2: "aeroplane", 459: "wool"}),
        ("stuff171", 171, {1: "person", 80: "toothbrush", 81: "banner", 171: "wood"}),
        ("cityscapes", 19, {1: "road", 12: "person", 19: "bicycle"}),
        ("camvid", 11, {1: "sky", 7: "sign symbol", 11: "bicyclist"}),
    ],
)
def test_class_lists_are_complete_and_in_order(name: str, count: int, examples: dict[int, str]):
    names, prompts = read_names(name)
    assert len(names) == len({n.casefold() for n in names}) == len({p.casefold() for p in prompts}) == count
    assert {i: prompts[i - 1] for i in examples} == examples
    assert all(line == line.strip() for line in (*names, *prompts))


def test_lists_that_overlap_agree():
    stuff, prompts = read_names("stuff171")
    assert stuff[:80] == COCO_CLASSES[1:]
    assert dict(zip(stuff, prompts, strict=True))["wall-brick"] == "brick wall"
    assert set(read_names("context59")[0]) <= set(read_names("context459")[0])
    assert len(SPECS) + 6 == len(BENCHMARKS)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    image = published_pairs("pascal", "val")[0][0]
    for part, pixels in (("VOCdevkit/VOC2012/JPEGImages", (9, 90, 200)), ("SegmentationClassAug", None)):
        (tmp_path / part).mkdir(parents=True)
        if pixels:
            Image.new("RGB", (4, 1), pixels).save(tmp_path / part / f"{image}.jpg")
        else:
            Image.fromarray(np.array([[0, 1, 20, 255]], np.uint8)).save(tmp_path / part / f"{image}.png")
    return tmp_path


def test_the_masks_of_vocs_own_tree(voc: Path):
    expected = open_dataset("voc21", voc, "val").read_mask(open_dataset("voc21", voc, "val").items[0])
    (voc / "SegmentationClassAug").rename(voc / "VOCdevkit" / "VOC2012" / "SegmentationClass")
    data = open_dataset("voc21", voc, "val")
    np.testing.assert_array_equal(data.read_mask(data.items[0]), expected)


def test_context60_is_context59_with_its_background(tmp_path: Path):
    add(tmp_path, "context60", "a", [0, 1, 59])
    data, other = open_dataset("context60", tmp_path, "val"), open_dataset("context59", tmp_path, "val")
    np.testing.assert_array_equal(data.read_mask(data.items[0]), [[0, 1, 59]])
    assert data.include_background
    assert data.classes[1:] == other.classes[1:]


def test_three_readings_of_pascals_background(voc: Path):
    pas20, pas20b, voc21 = (open_dataset(name, voc, "val") for name in ("pas20", "pas20b", "voc21"))
    np.testing.assert_array_equal(pas20.read_mask(pas20.items[0]), [[255, 1, 20, 255]])
    for data in (pas20b, voc21):
        np.testing.assert_array_equal(data.read_mask(data.items[0]), [[0, 1, 20, 255]])
        assert data.include_background
    assert not pas20.include_background
    assert len(pas20b.background_prompts) == 39
    assert {"sky", "grass", "wall"} < set(pas20b.background_prompts)
    assert not {"table", "sofa", "tv monitor", "potted plant"} & set(pas20b.background_prompts)
    assert voc21.background_prompts == ()
