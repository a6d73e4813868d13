"""Test that annotation files, written by hand or by our exports, are converted to masks."""

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner.data.annotation_formats import read_annotations
from fusioner.data.classes import COCO_CLASSES
from fusioner.data.folder import folder
from fusioner.data.prepare import prepare_coco, prepare_folder
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions
from fusioner.segmentation import Segmentation

WIDTH, HEIGHT = 12, 10


def square(x: int, y: int, side: int) -> list[int]:
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def picture(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 30)).save(path)
    return path


def coco_file(path: Path, names: list[str], annotations: list[dict[str, Any]], file_name: str = "a.jpg") -> Path:
    image = {"id": 7, "file_name": file_name, "width": WIDTH, "height": HEIGHT}
    categories = [{"id": 10 * i, "name": name} for i, name in enumerate(names, start=1)]
    entries = [{"id": i, "image_id": 7, "iscrowd": 0} | a for i, a in enumerate(annotations)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": [image], "categories": categories, "annotations": entries}))
    return path


def converted(kind: str, source: Path, out: Path, images: Path | None = None) -> dict[str, np.ndarray]:
    """Return the masks by image, read from the prepared folder."""
    prepare_folder(read_annotations(kind, source, images), out)
    data = open_dataset("folder", out)
    assert not data.problems
    return {item.id: data.read(item)[1] for item in data.items}


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Write a cow under a dog, surrounded by a crowd."""
    name = "COCO_val2014_000000000042.jpg"
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 6, HEIGHT * 6]}  # the left half, column by column
    annotations = [
        {"category_id": 20, "segmentation": [square(4, 2, 2)]},
        {"category_id": 10, "segmentation": [square(2, 1, 6)]},
        {"category_id": 10, "segmentation": crowd, "iscrowd": 1},
        {"category_id": 20, "segmentation": []},
    ]
    return coco_file(tmp_path / "instances_val2014.json", ["cow", "dog"], annotations, name)


def test_coco_masks_are_painted_small_over_large(instances: Path, tmp_path: Path):
    assert prepare_coco(instances, tmp_path) == (1, 0)
    picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    data = open_dataset("coco", tmp_path, "val")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:, :6] = 255
    expected[1:7, 2:8] = COCO_CLASSES.index("cow")
    expected[2:4, 4:6] = COCO_CLASSES.index("dog")
    np.testing.assert_array_equal(data.read(data.items[0])[1], expected)


def test_conversion_resumes(instances: Path, tmp_path: Path):
    prepare_coco(instances, tmp_path)
    mask = tmp_path / "annotation" / "val2014" / "COCO_val2014_000000000042.png"
    made = mask.stat().st_mtime_ns
    assert prepare_coco(instances, tmp_path) == (0, 1)
    assert mask.stat().st_mtime_ns == made
    mask.unlink()
    assert prepare_coco(instances, tmp_path) == (1, 0)


def test_files_that_are_not_cocos_are_refused(tmp_path: Path):
    (tmp_path / "val2014.json").write_text("{}")
    with pytest.raises(FusionerError, match="no COCO instances file"):
        prepare_coco(tmp_path / "val2014.json", tmp_path)
    with pytest.raises(FusionerError, match="none of COCO's 80: lemur"):
        prepare_coco(coco_file(tmp_path / "val2014.json", ["lemur"], []), tmp_path)
    with pytest.raises(FusionerError, match="train2014 or val2014"):
        prepare_coco(coco_file(tmp_path / "mine.json", ["cow"], []), tmp_path)
    bad = [{"category_id": 10, "segmentation": {"counts": "x"}}]
    with pytest.raises(FusionerError, match="no polygon and no run lengths"):
        prepare_coco(coco_file(tmp_path / "val2014.json", ["cow"], bad), tmp_path)
    assert not (tmp_path / "annotation").exists()


def test_own_classes_from_coco(tmp_path: Path):
    picture(tmp_path / "set" / "images" / "a.jpg")
    annotations = [
        {"category_id": 20, "segmentation": [square(2, 1, 6)]},
        {"category_id": 30, "segmentation": [square(8, 8, 2)], "iscrowd": 1},
    ]
    source = coco_file(tmp_path / "set" / "all.json", ["background", "lemur", "tree"], annotations)
    masks = converted("coco", source, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[1:7, 2:8], expected[8:, 8:10] = 1, 255
    np.testing.assert_array_equal(masks["a"], expected)
    assert folder(tmp_path / "out").classes == ("background", "lemur", "tree")


def test_shapes_of_labelme_lie_in_their_order(tmp_path: Path):
    picture(tmp_path / "set" / "a.jpg")
    bits = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(bits, format="PNG")
    shapes = [
        {"label": "wall", "shape_type": "rectangle", "points": [[6, 8], [0, 0]]},
        {"label": "door", "shape_type": "polygon", "points": np.reshape(square(2, 2, 3), (-1, 2)).tolist()},
        {"label": "__ignore__", "shape_type": "circle", "points": [[9.5, 4.5], [9.5, 5.1]]},
        {"label": "door", "shape_type": "mask", "points": [[10, 8], [11, 9]],
         "mask": base64.b64encode(bits.getvalue()).decode()},
        {"label": "_background_", "shape_type": "rectangle", "points": [[0, 0], [1, 1]]},
        {"label": "wire", "shape_type": "line", "points": [[0, 0], [5, 5]]},
    ]  # fmt: skip
    content = {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
    (tmp_path / "set" / "a.json").write_text(json.dumps(content))
    masks = converted("labelme", tmp_path / "set", tmp_path / "out")
    assert folder(tmp_path / "out").classes == ("background", "door", "wall", "wire")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:8, :6] = 2
    expected[2:5, 2:5] = expected[8, 10] = expected[9, 10] = expected[9, 11] = 1
    expected[4, 9], expected[0, 0] = 255, 0
    np.testing.assert_array_equal(masks["a"], expected)
    assert read_annotations("labelme", tmp_path / "set", None).notes == [
        "1 shapes of kind line mark no area or are not supported and were left out"
    ]


def test_shapes_of_cvat_lie_in_their_z_order(tmp_path: Path):
    picture(tmp_path / "photos" / "day 1" / "a.jpg")
    (tmp_path / "annotations.xml").write_text(
        f"""<?xml version="1.0" encoding="utf-8"?>
        <annotations><meta><job><labels><label><name>cat</name></label><label><name>mat</name></label></labels></job></meta>
        <image id="0" name="day 1/a.jpg" width="{WIDTH}" height="{HEIGHT}">
          <polygon label="cat" points="2,2;5,2;5,5;2,5" z_order="2" occluded="0"/>
          <mask label="cat" rle="1, 2, 1" left="9" top="7" width="2" height="2" z_order="1"/>
          <box label="mat" xtl="0" ytl="0" xbr="6" ybr="8" z_order="0"/>
        </image></annotations>"""
    )
    masks = converted("cvat", tmp_path / "annotations.xml", tmp_path / "out", tmp_path / "photos")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:8, :6] = 2
    expected[2:5, 2:5] = expected[7, 10] = expected[8, 9] = 1
    np.testing.assert_array_equal(masks["a"], expected)


def test_masks_of_cvat_are_read_by_their_colours(tmp_path: Path):
    picture(tmp_path / "JPEGImages" / "a.png")
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[2:5, 2:5], rgb[7:, :] = (250, 50, 83), (36, 179, 83)
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(rgb).quantize().save(tmp_path / "SegmentationClass" / "a.png")
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:250,50,83::", "mat:36,179,83::"]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines) + "\n")
    masks = converted("cvat", tmp_path, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:5, 2:5], expected[7:, :] = 1, 2
    np.testing.assert_array_equal(masks["a"], expected)


def test_objects_of_supervisely(tmp_path: Path):
    root = tmp_path / "project"
    bits = io.BytesIO()
    alpha = np.zeros((2, 2, 4), np.uint8)
    alpha[0] = 255
    Image.fromarray(alpha).save(bits, format="PNG")
    objects = [
        {"classTitle": "road", "geometryType": "rectangle",
         "points": {"exterior": [[0, 0], [5, 7]], "interior": []}},
        {"classTitle": "car", "geometryType": "polygon",
         "points": {"exterior": [[2, 2], [6, 2], [6, 6], [2, 6]], "interior": [[[4, 4], [4, 4], [4, 4]]]}},
        {"classTitle": "car", "geometryType": "bitmap",
         "bitmap": {"origin": [9, 8], "data": base64.b64encode(zlib.compress(bits.getvalue())).decode()}},
    ]  # fmt: skip
    for part in ("train", "val"):
        picture(root / part / "img" / "a.jpg")
        (root / part / "ann").mkdir()
        annotation = {"size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
        (root / part / "ann" / "a.jpg.json").write_text(json.dumps(annotation))
    (root / "meta.json").write_text(json.dumps({"classes": [{"title": "car"}, {"title": "road"}]}))
    masks = converted("supervisely", root, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:8, :6] = 2
    expected[2:7, 2:7] = 1
    expected[4, 4] = 2
    expected[8, 9:11] = 1
    assert set(masks) == {"train_a", "val_a"}
    np.testing.assert_array_equal(masks["val_a"], expected)


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat"])
def test_exported_annotations_convert_back_to_the_same_masks(tmp_path: Path, kind: str):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 4, (5, 7))
    label_map = np.kron(coarse, np.ones((6, 5), int))[:27, :33].astype(np.uint16)
    label_map[10:14, 3:9] = 0
    label_map[11:13, 4:7] = 2
    rgb = rng.integers(0, 255, (*label_map.shape, 3)).astype(np.uint8)
    labels = ("cat", "red sofa", "wall")
    scores: dict[str, float] = dict.fromkeys(labels, 1.0)
    result = Segmentation(
        rgb, labels, label_map, scores, "room.png", np.zeros((3, 1, 1), np.float32), InferenceOptions()
    )
    result.save(tmp_path / "set", "room", [kind])
    Image.fromarray(rgb).save(tmp_path / "set" / "room.png")
    masks = converted(kind, tmp_path / "set", tmp_path / "out")
    np.testing.assert_array_equal(masks["room"], label_map)
    assert folder(tmp_path / "out").classes == ("background", *labels)


def test_images_are_linked_copied_or_rewritten(tmp_path: Path):
    source = coco_file(tmp_path / "a.json", ["cow"], [], "a.jpg")
    picture(tmp_path / "a.jpg")
    for copy in (False, True):
        prepare_folder(read_annotations("coco", source, None), tmp_path / "out", copy)
        assert (tmp_path / "out" / "images" / "a.jpg").is_symlink() != copy
    prepare_folder(read_annotations("coco", source, None), tmp_path / "out", copy=False)
    assert not (tmp_path / "out" / "images" / "a.jpg").is_symlink(), "a link replaced the file"
    for name in ("b.bmp", "c.bin"):
        picture(tmp_path / "b.bmp").rename(tmp_path / name)
        prepare_folder(
            read_annotations("coco", coco_file(tmp_path / "a.json", ["cow"], [], name), None), tmp_path / "out"
        )
    assert (tmp_path / "out" / "images" / "b.bmp").is_symlink()
    with Image.open(tmp_path / "out" / "images" / "c.png") as rewritten:
        assert rewritten.size == (WIDTH, HEIGHT)


def test_unconvertible_inputs_are_one_sentence(tmp_path: Path):
    source = coco_file(tmp_path / "a.json", ["cow"], [{"category_id": 10, "segmentation": [[1, "x", 2, 3, 4, 5]]}])
    with pytest.raises(FusionerError, match="--images names the folder"):
        read_annotations("coco", source, None)
    picture(tmp_path / "a.jpg", width=11)
    with pytest.raises(FusionerError, match=r"a\.jpg"):
        prepare_folder(read_annotations("coco", source, None), tmp_path / "out")
    source = coco_file(tmp_path / "a.json", ["cow"], [])
    with pytest.raises(FusionerError, match="is 11x10 pixels, its annotation was made on 12x10"):
        prepare_folder(read_annotations("coco", source, None), tmp_path / "out")
    picture(tmp_path / "a.jpg")
    prepare_folder(read_annotations("coco", source, None), tmp_path / "out")
    source = coco_file(tmp_path / "a.json", ["goat"], [])
    with pytest.raises(FusionerError, match="set of other classes"):
        prepare_folder(read_annotations("coco", source, None), tmp_path / "out")
    for kind, output in (
        ("labelme", "no annotated image"),
        ("cvat", r"holds 0 files \*\.xml"),
        ("supervisely", "meta"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FusionerError, match=output):
            prepare_folder(read_annotations(kind, tmp_path / "empty", None), tmp_path / "other")
    (tmp_path / "empty" / "a.json").write_text('{"shapes": 3}')
    with pytest.raises(FusionerError, match="no LabelMe file"):
        read_annotations("labelme", tmp_path / "empty", None)
