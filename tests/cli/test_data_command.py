"""`fusioner data check` and `fusioner data show` on small folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.cli.data import check, show
from fusioner.cli.main import build, main
from fusioner.errors import FusionerError


@pytest.fixture
def own(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i, width in enumerate((40, 60, 80, 30)):
        mask = np.zeros((50, width), np.uint8)
        mask[10:40, 10:20] = 1
        Image.new("RGB", (width, 50), (40 * i, 90, 120)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("background\ncat\nsofa\n")
    return root


def test_a_sound_set_is_counted(own: Path, capsys: pytest.CaptureFixture[str]):
    check("folder", root=own)
    printed = capsys.readouterr().out
    assert "4 images, 1 classes" in printed
    assert "cat" in printed
    assert "1 of 2 classes are in no mask: sofa" in printed


def test_every_broken_file_is_named_and_the_others_still_counted(own: Path, capsys: pytest.CaptureFixture[str]):
    (own / "images" / "0.png").write_bytes((own / "images" / "0.png").read_bytes()[:50])
    Image.new("L", (60, 50), 9).save(own / "masks" / "1.png")
    Image.new("L", (81, 50)).save(own / "masks" / "2.png")
    Image.new("L", (81, 50)).save(own / "masks" / "extra.png")
    with pytest.raises(FusionerError, match="3 of 4 images"):
        check("folder", root=own)
    printed = capsys.readouterr().out
    assert "1 images, 1 classes" in printed
    for output in ("images/0.png", "masks/1.png holds value 9", "masks/2.png is 81x50", "no image", "extra"):
        assert output in printed


def test_masks_painted_in_white_get_a_hint(own: Path, capsys: pytest.CaptureFixture[str]):
    for path in (own / "masks").iterdir():
        mask = np.asarray(Image.open(path)) * 255
        Image.fromarray(mask.astype(np.uint8)).save(path)
    check("folder", root=own)
    assert "no mask holds any class: pixels of class i must have the value i" in capsys.readouterr().out


def test_published_pairs_that_are_missing_are_counted(shared: Path, capsys: pytest.CaptureFixture[str]):
    check("coco", root=shared / "data" / "coco", split="val")
    printed = capsys.readouterr().out
    assert "299 images, 78 classes" in printed
    assert "2 of 80 classes are in no mask" in printed
    assert "35783" in printed.split("published val pairs")[1]
    with pytest.raises(FusionerError, match=r"must be the folder that holds"):
        check("pascal", root=shared / "nowhere")


def test_a_contact_sheet_shows_the_photographs_under_their_masks(own: Path, tmp_path: Path):
    out = tmp_path / "new" / "sheet.png"
    Image.new("L", (40, 50)).save(own / "masks" / "0.png")  # without classes there is no legend
    show("folder", root=own, out=out, count=3, columns=2)
    sheet = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert 720 < sheet.shape[1] < 800
    assert ((sheet[..., 2] > 150) & (sheet[..., 0] < 100)).mean() > 0.05, "the photographs lack the blue of the class"
    with pytest.raises(FusionerError, match=r"\.png or \.jpg"):
        show("folder", root=own, out=tmp_path / "sheet.pdf")
    with pytest.raises(FusionerError, match="at least one cell"):
        show("folder", root=own, out=out, count=0)


def test_annotations_of_other_tools_become_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.new("RGB", (8, 6), (9, 90, 9)).save(tmp_path / "a.png")
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[1, 1], [4, 5]]}
    content = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 6, "imageWidth": 8}
    (tmp_path / "a.json").write_text(json.dumps(content))
    out = tmp_path / "out"
    assert main(["data", "prepare", "folder", str(tmp_path), "--from", "labelme", "--root", str(out)]) == 0
    assert "1 images with masks of 1 classes" in capsys.readouterr().out
    assert main(["data", "check", "folder", "--root", str(out)]) == 0
    assert "cat" in capsys.readouterr().out
    assert main(["data", "prepare", "folder", str(tmp_path / "no"), "--from", "cvat", "--root", str(out)]) == 2
    assert "there is no" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["data", "evaluation"])
def test_the_commands_of_the_pages_parse(page: str):
    text = (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text("utf-8")
    calls = [line.split()[1:] for line in text.splitlines() if line.startswith("    fusioner ")]
    assert len(calls) > 3
    for call in calls:
        build(call[0]).parse_args(call, print_error=False, exit_on_error=False)
