"""No command replaces a file that it did not write."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fusioner.cli.main import main
from fusioner.errors import FusionerError
from fusioner.evaluation.report import write_files
from fusioner.export.write import _replace
from fusioner.formats import FORMATS
from fusioner.io import check_replaceable
from fusioner.training.resume import Log

OURS = "exists and was not written by fusioner"


@pytest.mark.parametrize(
    "occupied", ["chelsea.png", "chelsea.json", "chelsea.geojson", "chelsea.npz", "chelsea.png link"]
)
def test_predict_keeps_files_beside_the_picture(tiny_predict, photos: Path, tmp_path: Path, occupied: str) -> None:
    shutil.copy(photos / "chelsea.jpg", tmp_path)
    target = tmp_path / occupied.removesuffix(" link")
    if occupied.endswith("link"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / "original.png")
        target.symlink_to("original.png")
    else:
        target.write_text('{"mine": 1}')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, _, err = tiny_predict("chelsea.jpg", "--out", ".", "--format", "mask,json,geojson,npz")
    assert (code, OURS in err) == (2, True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("flag", "name"), [("--csv", "notes.csv"), ("--contact-sheet", "sheet.jpg")])
def test_predict_keeps_tables_and_pictures(tiny_predict, photos: Path, flag: str, name: str) -> None:
    Path(name).write_text("mine")
    code, out, err = tiny_predict(photos, flag, name)
    assert (code, out, OURS in err) == (2, "", True)  # rejected before the first picture
    assert Path(name).read_text() == "mine"


def test_earlier_results_are_replaced(tiny_predict, photos: Path) -> None:
    for _ in range(2):
        for sheet in ("sheet.png", "sheet.jpg"):
            flags = ("--format", ",".join(FORMATS), "--csv", "table.csv", "--contact-sheet", sheet)
            assert tiny_predict(photos, *flags)[0] == 0


def test_a_contact_sheet_of_data_keeps_a_photograph(tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.jpg")
    Image.new("L", (9, 9), 1).save(tmp_path / "masks" / "a.png")
    (tmp_path / "classes.txt").write_text("background\ncat\n")
    show = ["data", "show", "folder", "--root", str(tmp_path), "--out"]
    content = (tmp_path / "images" / "a.jpg").read_bytes()
    assert main([*show, str(tmp_path / "images" / "a.jpg")]) == 2
    assert (tmp_path / "images" / "a.jpg").read_bytes() == content
    for name in ("sheet.png", "sheet.png", "sheet.jpg", "sheet.jpg"):
        assert main([*show, str(tmp_path / name)]) == 0


def test_reports_exports_and_logs_keep_other_files(tmp_path: Path) -> None:
    contents = {"a.md": "x", "a.html": "<meta name=generator content=Fusioner>"}
    for _ in range(2):
        write_files(tmp_path / "report", contents)
    (tmp_path / "report" / "a.html").write_text("mine")
    with pytest.raises(FusionerError, match=OURS):
        write_files(tmp_path / "report", contents)
    (tmp_path / "metrics.jsonl").write_text("mine")
    with pytest.raises(FusionerError, match=OURS):
        Log(tmp_path, 0)
    made = tmp_path / "made"
    made.mkdir()
    (made / "image.onnx").write_text("new")
    (tmp_path / "image.onnx").write_text("mine")
    with pytest.raises(FusionerError, match=OURS):
        _replace(made, tmp_path)
    assert (tmp_path / "image.onnx").read_text() == "mine"


def test_the_mark_is_found_at_both_ends_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    check_replaceable(path)
    for content in (b"Fusioner" + bytes(2**22), bytes(2**22) + b"Fusioner"):
        path.write_bytes(content)
        check_replaceable(path)
    path.write_bytes(bytes(2**22))
    with pytest.raises(FusionerError, match=OURS):
        check_replaceable(path)
