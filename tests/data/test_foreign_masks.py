"""Masks and names as written by other tools and systems."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.cli.main import main
from fusioner.data.check import check_dataset
from fusioner.data.folder import folder
from fusioner.data.masks import VOC_PALETTE, read_mask
from fusioner.data.paths import NameIndex
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.training.dataset import open_split

IDS = np.zeros((6, 8), np.uint8)
IDS[2:, 3:] = 1


def build(root: Path, mask: np.ndarray, image: str = "a.jpg", mask_name: str = "a.png", names: str = "") -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (9, 90, 9)).save(root / "images" / image)
    Image.fromarray(mask).save(root / "masks" / mask_name)
    (root / "classes.yaml").write_text(names or "names: [background, cat]")
    return root


def read(root: Path, **options: str) -> np.ndarray:
    data = open_dataset("folder", root, **options)
    assert not data.problems
    return data.read_mask(data.items[0])


@pytest.mark.parametrize(
    ("mask", "mask_name"),
    [
        (np.dstack([IDS] * 3), "a.png"),
        (np.dstack([IDS * 128, IDS * 0, IDS * 0]), "a.png"),
        (IDS, "a.tif"),
        (IDS, "a.bmp"),
        (IDS, "a_mask.png"),
        (IDS, "A-Labels.png"),
    ],
)
def test_masks_of_other_formats_and_names(tmp_path: Path, mask: np.ndarray, mask_name: str):
    np.testing.assert_array_equal(read(build(tmp_path, mask, mask_name=mask_name)), IDS)


@pytest.mark.parametrize("colour", ["[10, 20, 30]", "'#0a141e'"])
def test_colours_of_the_class_file(tmp_path: Path, colour: str):
    names = f"names: [background, cat]\ncolors: {{background: [0, 0, 0], cat: {colour}}}"
    mask = IDS[..., None] * np.array([10, 20, 30], np.uint8)
    np.testing.assert_array_equal(read(build(tmp_path, mask, names=names)), IDS)
    with pytest.raises(FusionerError, match=r"colour 20,40,60, which is none of the 2"):
        read(build(tmp_path, mask * np.uint8(2), names=names))
    with pytest.raises(FusionerError, match="must map class names"):
        folder(build(tmp_path, mask, names="names: [background, cat]\ncolors: [1]"))


def test_the_palette_of_voc(tmp_path: Path):
    by_value = {value: colour for colour, value in VOC_PALETTE.items()}
    assert (by_value[1], by_value[15], by_value[255]) == ((128, 0, 0), (192, 128, 128), (224, 224, 192))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.array([by_value[i] for i in range(256)], np.uint8).reshape(16, 16, 3)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), values)


def test_masks_of_black_and_white(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = build(tmp_path, IDS * np.uint8(255))
    with pytest.raises(FusionerError, match=r"hold 0 and 255: is 255 the object\? Then add --mask-values 255=1"):
        open_split("folder", root)
    assert main(["data", "check", "folder", "--root", str(root)]) == 0
    assert "--mask-values 255=1" in capsys.readouterr().out
    np.testing.assert_array_equal(read(root, mask_values="255=1"), IDS)
    np.testing.assert_array_equal(read(root, mask_values="0=ignore, 255=1"), np.where(IDS, 1, 255))
    assert open_split("folder", root, mask_values="255=1").data.pairs() == [("a", 1)]
    for wrong in ("255", "255=cat", "255=7"):
        with pytest.raises(FusionerError, match="mask"):
            read(root, mask_values=wrong)


def test_sizes_are_compared_where_masks_are_read_alone(tmp_path: Path):
    root, exif = build(tmp_path, IDS), Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (8, 6)).save(root / "images" / "a.jpg", exif=exif.tobytes())
    data = folder(root)
    with pytest.raises(FusionerError, match=r"is 8x6 .* is 6x8 \(its EXIF orientation turns it.*; they must be equal"):
        data.read_mask(data.items[0])
    report = check_dataset(data)
    assert "1 images are turned by their EXIF orientation; so must their masks be" in report.warnings(data)
    with pytest.raises(FusionerError, match="must be equal"):
        open_split("folder", root)


def test_names_of_other_systems_are_found(tmp_path: Path):
    composed = "caf\u00e9 B"
    root = build(tmp_path, IDS, f"{composed}.jpg", f"{unicodedata.normalize('NFD', composed)}.png")
    for text in (f"\ufeff{composed}\r\n", f"images\\{composed.upper()}.JPG", unicodedata.normalize("NFD", composed)):
        (root / "train.txt").write_text(text, "utf-8")
        data = folder(root, "train")
        assert [item.id for item in data.items] == [composed]
        assert not data.problems
    index = NameIndex(["a", "A", "b"])
    assert [index.find(name) for name in ("a", "A", "B", "c")] == ["a", "A", "b", None]
    assert NameIndex(["a", "A"]).find("x/a") is None


def test_two_masks_of_one_image_are_refused(tmp_path: Path):
    build(tmp_path, IDS)
    build(tmp_path, IDS, mask_name="a_mask.png")
    with pytest.raises(FusionerError, match="masks of one image"):
        folder(tmp_path)
