"""Loading, reports and errors on small trees in the exact official formats."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.data.benchmarks import pascal
from fusioner.data.classes import COCO_CLASSES, PASCAL_CLASSES
from fusioner.data.folder import folder
from fusioner.data.registry import LOADERS, open_dataset
from fusioner.errors import FusionerError


def picture(path: Path, width: int = 8, height: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 200, 30)).save(path)


def indexed(path: Path, values: np.ndarray, palette: bool = True) -> None:
    """Return a mask as stored by VOC, with palette colours unrelated to the ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(values.astype(np.uint8))
    if palette:
        mask.putpalette([(v * 97 + c * 31) % 256 for v in range(256) for c in range(3)])
    mask.save(path)


def mask_of(*values: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.resize(np.array(values), (height, width))


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for i, values in {"2007_000032": (0, 1, 15, 255), "2007_000033": (0, 1), "2007_000039": (0, 20)}.items():
        picture(base / "JPEGImages" / f"{i}.jpg")
        indexed(tmp_path / "SegmentationClassAug" / f"{i}.png", mask_of(*values))
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000033\n2007_009999\n")
    return tmp_path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for i in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{i}.jpg")
        indexed(tmp_path / "masks" / f"{i}.png", mask_of(0, 1, 2, 255))
    (tmp_path / "classes.txt").write_text("background\ncat\nteddy_bear\n")
    return tmp_path


def test_pascal_reads_indices_not_palette_colours(voc: Path):
    data = pascal(voc, "train")
    rgb, mask = data.read(data.items[0])
    assert rgb.shape == (6, 8, 3)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, mask_of(0, 1, 15, 255))
    assert data.pairs() == [("2007_000032", 1), ("2007_000032", 15)]
    assert data.pixel_counts(data.items[0]) == {1: 12, 15: 12}


def test_pascal_splits_and_missing_images(voc: Path):
    val = pascal(voc, "val")
    assert list(val.by_id) == ["2007_000033"]
    assert "2007_009999" in val.problems[0]
    assert [item.id for item in pascal(voc, "train_aug").items] == ["2007_000032", "2007_000039"]
    assert len(pascal(voc).items) == 3
    with pytest.raises(FusionerError, match="train_aug"):
        pascal(voc, "test")


def test_pascal_without_text_lists_falls_back_to_the_packaged_ones(voc: Path):
    (voc / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").unlink()
    assert [item.id for item in pascal(voc, "val").items] == ["2007_000033"]
    assert [item.id for item in pascal(voc, "train_aug").items] == ["2007_000032", "2007_000039"]


def test_pascal_takes_masks_inside_voc2012_too(voc: Path):
    (voc / "SegmentationClassAug").rename(voc / "VOCdevkit" / "VOC2012" / "SegmentationClassAug")
    assert len(pascal(voc).items) == 3


def test_prompts_are_words_where_the_names_are_codes(voc: Path):
    data = pascal(voc)
    assert data.classes[16] == "pottedplant"
    assert data.prompts[16] == "potted plant"
    assert len(data.prompts) == len(PASCAL_CLASSES) == 21


@pytest.mark.parametrize(
    ("name", "missing", "tree"),
    [
        ("pascal", "SegmentationClassAug", "JPEGImages/2007_000032.jpg"),
        ("pascal", "VOCdevkit", "JPEGImages/2007_000032.jpg"),
        ("coco", "annotation/val2014", "val2014/COCO_val2014_"),
        ("coco", "train2014", "val2014/COCO_val2014_"),
        ("folder", "masks", "images/NAME.jpg"),
        ("folder", "images", "masks/NAME.png"),
    ],
)
def test_a_missing_folder_is_reported_with_the_expected_tree(tmp_path: Path, name: str, missing: str, tree: str):
    for part in (
        "VOCdevkit/VOC2012/JPEGImages",
        "SegmentationClassAug",
        *(f"{top}{part}2014" for part in ("train", "val") for top in ("", "annotation/")),
        "images",
        "masks",
    ):
        if not part.startswith(missing):
            (tmp_path / part).mkdir(parents=True, exist_ok=True)
    if name == "coco" and missing != "train2014":
        picture(tmp_path / "train2014" / "COCO_train2014_000000000009.jpg")
    with pytest.raises(FusionerError) as caught:
        open_dataset(name, tmp_path)
    assert str(tmp_path / missing.split("/", maxsplit=1)[0]) in str(caught.value)
    assert tree in str(caught.value)


def test_no_root_and_no_such_set(tmp_path: Path):
    for name in LOADERS:
        with pytest.raises(FusionerError, match="nowhere"):
            open_dataset(name, tmp_path / "nowhere")
    with pytest.raises(FusionerError, match=r"pascal, coco, .*folder, fss1000"):
        open_dataset("imagenet", tmp_path)


def test_coco_pairs_up_annotations_and_reports_the_rest(tmp_path: Path):
    for part, number in (("train2014", 9), ("val2014", 42)):
        stem = f"COCO_{part}_{number:012d}"
        picture(tmp_path / part / f"{stem}.jpg")
        indexed(tmp_path / "annotation" / part / f"{stem}.png", mask_of(0, 80), palette=False)
    picture(tmp_path / "val2014" / "COCO_val2014_000000000073.jpg")
    data = open_dataset("coco", tmp_path)
    assert [item.id for item in data.items] == ["COCO_train2014_000000000009", "COCO_val2014_000000000042"]
    assert "COCO_val2014_000000000073" in data.problems[0]
    assert data.pairs()[0] == ("COCO_train2014_000000000009", 80)
    assert len(COCO_CLASSES) == 81
    assert len(open_dataset("coco", tmp_path, "val").items) == 1


def test_a_user_folder(own: Path):
    data = folder(own)
    assert data.classes == ("background", "cat", "teddy_bear")
    assert data.prompts[2] == "teddy bear"
    assert data.class_ids == (1, 2)
    assert not data.ignore_unlabeled
    assert set(np.unique(data.read(data.items[0])[1])) == {0, 1, 2, 255}


def test_splits_of_a_folder(own: Path):
    with pytest.raises(FusionerError, match=r"val\.txt is missing"):
        folder(own, "val")
    assert len(folder(own, "train").items) == 3
    (own / "val.txt").write_text("b.jpg\nimages/zz.jpg\n")
    val = folder(own, "val")
    assert [item.id for item in val.items] == ["b"]
    assert "zz" in val.problems[0]
    assert [item.id for item in folder(own, "train").items] == ["a", "c"]
    (own / "train.txt").write_text("c\nc\n")
    assert [item.id for item in folder(own, "train").items] == ["c"]


def test_names_with_dots_are_whole_stems(own: Path):
    picture(own / "images" / "scan.v2.png")
    indexed(own / "masks" / "scan.v2.png", mask_of(0, 1))
    (own / "val.txt").write_text("scan.v2\n")
    assert [item.id for item in folder(own, "val").items] == ["scan.v2"]


def test_masks_and_images_without_partner_are_reported(own: Path):
    (own / "images" / "a.jpg").unlink()
    (own / "masks" / "b.png").unlink()
    data = folder(own)
    assert [item.id for item in data.items] == ["c"]
    assert any("no mask" in p and "b" in p for p in data.problems)
    assert any("no image" in p and "a" in p for p in data.problems)
    (own / "images" / "c.jpg").unlink()
    with pytest.raises(FusionerError, match="has a mask"):
        folder(own)


def test_two_images_of_one_stem_are_refused(own: Path):
    picture(own / "images" / "a.png")
    with pytest.raises(FusionerError, match="share the stem 'a'"):
        folder(own)


@pytest.mark.parametrize("name", ["null", "Unlabeled", "UNKNOWN", "ignore", "Void"])
def test_an_unlabeled_class_zero_is_ignored(own: Path, name: str):
    (own / "classes.txt").write_text(f"{name}\ncat\nsofa\n")
    data = folder(own)
    assert data.ignore_unlabeled
    assert data.classes[0] == name
    assert set(np.unique(data.read(data.items[0])[1])) == {1, 2, 255}


@pytest.mark.parametrize(("first", "last"), [("background", 2), ("background", 255), ("wall", 2)])
def test_a_class_named_void_is_ignored_at_any_index(own: Path, first: str, last: int):
    (own / "classes.txt").unlink()
    (own / "classes.json").write_text(json.dumps({first: 0, "cat": 1, "Void": last}))
    for mask in (own / "masks").iterdir():
        indexed(mask, mask_of(0, 1, last))
    data = folder(own)
    ordinary = first != "background"
    assert "class 'Void'" in data.problems[-1]
    assert [data.classes[i] for i in data.class_ids] == (["wall", "cat"] if ordinary else ["cat"])
    assert set(np.unique(data.read(data.items[0])[1])) == ({1, 2, 255} if ordinary else {0, 1, 255})


def test_an_ordinary_class_zero_moves_all_ids_up(own: Path):
    (own / "classes.txt").write_text("wall\nfloor\nsky\n")
    data = folder(own)
    assert data.classes == ("unlabeled", "wall", "floor", "sky")
    assert set(np.unique(data.read(data.items[0])[1])) == {1, 2, 3, 255}
    assert [data.classes[c] for _, c in data.pairs()[:3]] == ["wall", "floor", "sky"]


def test_gaps_are_no_classes_and_more_than_255_need_sixteen_bits(own: Path):
    (own / "classes.json").write_text('{"background": 0, "cat": 1, "late": 300}')
    (own / "classes.txt").unlink()
    wide = mask_of(0, 1, 300, 65535).astype(np.uint16)
    Image.fromarray(wide).save(own / "masks" / "a.png")
    data = folder(own)
    assert data.class_ids == (1, 300)
    assert data.ignore == 65535
    np.testing.assert_array_equal(data.read_mask(data.by_id["a"]), wide)
    with pytest.raises(FusionerError, match=r"b\.png holds value 2,"):
        data.read_mask(data.by_id["b"])


@pytest.mark.parametrize(("classes", "ignore"), [(255, 255), (256, 65535)])
def test_255_is_ignored_unless_it_is_a_class(classes: int, ignore: int) -> None:
    data = SegmentationData("many", tuple(f"class {i}" for i in range(classes)), [])
    assert data.ignore == ignore
    assert data.value_to_class == {ignore: None} | {i: i for i in range(classes)}


@pytest.mark.parametrize("value", [3, 7, 254])
def test_a_value_outside_the_classes_is_reported_with_its_file(own: Path, value: int):
    indexed(own / "masks" / "b.png", mask_of(0, 1, value))
    data = folder(own)
    with pytest.raises(FusionerError, match=rf"masks/b\.png holds value {value},.*2 = teddy_bear"):
        data.read(data.by_id["b"])
    with pytest.raises(FusionerError, match="holds value"):
        data.pairs()


def test_a_mask_of_another_size_is_reported_with_both_sizes(own: Path):
    indexed(own / "masks" / "b.png", mask_of(0, 1, height=5, width=9))
    data = folder(own)
    with pytest.raises(FusionerError, match=r"masks/b\.png is 9x5 .*images/b\.jpg is 8x6"):
        data.read(data.by_id["b"])


def test_invalid_masks_are_refused(own: Path):
    data, path = folder(own), own / "masks" / "a.png"
    item = Item("a", own / "images" / "a.jpg", path)
    picture(path)
    with pytest.raises(FusionerError, match="colour picture"):
        data.read(item)
    Image.new("L", (8, 6)).save(path, format="JPEG")
    with pytest.raises(FusionerError, match="JPEG"):
        data.read(item)
    indexed(path, mask_of(0, 1, height=60, width=80))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FusionerError, match=r"a\.png cannot be read"):
        data.read(item)
    path.write_bytes(b"")
    with pytest.raises(FusionerError, match=r"a\.png cannot be read"):
        data.read(item)
    path.unlink()
    with pytest.raises(FusionerError, match="does not exist"):
        data.read(item)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [True, False])
def test_masks_of_few_bits_keep_their_values(tmp_path: Path, bits: int, palette: bool):
    values = mask_of(*range(min(2**bits, 6)))
    write_png(tmp_path / "m.png", values, bits, palette)
    data = SegmentationData("tiny", tuple("bcdefg"), [])
    np.testing.assert_array_equal(data.read_mask(Item("m", tmp_path / "m.jpg", tmp_path / "m.png")), values)


def write_png(path: Path, values: np.ndarray, bits: int, palette: bool) -> None:
    """Write a PNG of a bit depth by hand, because Pillow does not write 2- and 4-bit grey."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = values.shape
    digits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
    rows = np.packbits(digits.reshape(height, -1), axis=-1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, 3 if palette else 0, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(range(255, 255 - 3 * 2 ** min(bits, 6), -1))) if palette else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colours
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def test_fss1000_is_one_binary_class_a_folder(tmp_path: Path):
    for name, mode in (("bus", "RGB"), ("burj_al", "L")):
        for n in (1, 2, 10):
            picture(tmp_path / name / f"{n}.jpg")
            Image.fromarray(np.uint8(mask_of(0, 255))).convert(mode).save(tmp_path / name / f"{n}.png")
    (tmp_path / "bus" / "10.png").unlink()
    data = open_dataset("fss1000", tmp_path, "test")
    assert data.classes == ("background", "burj_al", "bus")
    assert data.prompts[1] == "burj al"
    assert [item.id for item in data.items] == ["burj_al/1", "burj_al/2", "burj_al/10", "bus/1", "bus/2"]
    assert any("238 classes of test" in p for p in data.problems)
    assert any("bus" in p and "10" in p for p in data.problems)
    for class_id in (1, 2):
        item = next(i for i in data.items if i.class_id == class_id)
        np.testing.assert_array_equal(data.read(item)[1], mask_of(0, class_id))
    with pytest.raises(FusionerError, match="520 official classes of train"):
        open_dataset("fss1000", tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "folder_name", "split", "images", "classes", "unlabeled"),
    [
        ("pascal", "pascal", "val", 506, 20, False),
        ("pascal", "pascal", "train_aug", 1269, 20, False),
        ("coco", "coco", "val", 299, 80, False),
        ("folder", "clothing", "val", 251, 58, True),
        ("folder", "coco_stuff", "train", 73, 129, True),
        ("fss1000", "fss_like", None, 820, 82, False),
    ],
)
def test_the_real_sets_load_as_they_are(
    shared: Path, name: str, folder_name: str, split: str | None, images: int, classes: int, unlabeled: bool
):
    data = open_dataset(name, shared / "data" / folder_name, split)
    assert len(data.items) == images
    assert len(data.class_ids) == classes
    assert data.ignore_unlabeled == unlabeled
    assert not data.problems
    assert all(data.prompts[i] for i in data.class_ids)
    for item in data.items[:: max(1, images // 6)]:
        rgb, mask = data.read(item)
        assert rgb.shape[:2] == mask.shape
        assert set(np.unique(mask)) - {data.ignore} <= {0, *data.class_ids}
