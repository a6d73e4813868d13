"""Test that docs/inputs.md quotes the real messages, by making and reading each of its inputs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner import image
from fusioner.cli.inputs import find_inputs
from fusioner.data.annotation_formats import read_annotations
from fusioner.data.folder import folder
from fusioner.data.prepare import prepare_folder
from fusioner.errors import FusionerError

PAGE = Path(__file__).parent.parent / "docs" / "inputs.md"
RGB = np.dstack([np.tile(np.arange(16, dtype=np.uint8) * 15, (12, 1))] * 3)


def tables() -> dict[str, str]:
    """Return the first cell and the quoted sentence of all rows with a quotation."""
    rows = re.findall(r"^\| ([^|]+) \| (`+)([^|]+)\2 \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {title: sentence for title, _, sentence in rows}


def save(name: str, array: np.ndarray, **options: Any) -> None:
    Image.fromarray(array).save(name, **options)


def pages(name: str) -> None:
    frames = [Image.fromarray(RGB + np.uint8(step)) for step in range(3)]
    frames[0].save(name, save_all=True, append_images=frames[1:])


def bands() -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite("scene.tif", np.dstack([RGB, RGB[..., :2]]), photometric="rgb")


def masks(mask: np.ndarray, names: str = "background\ncat\n") -> Path:
    for part in ("images", "masks"):
        Path(part).mkdir(exist_ok=True)
    save("images/a.png", RGB)
    save("masks/a.png", mask)
    Path("classes.txt").write_text(names)
    return Path()


def turned(name: str) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(RGB).save(name, exif=exif.tobytes())


def annotations(**entry: object) -> None:
    save("a.jpg", RGB)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 16, "height": 12}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1, **entry}],
    }
    Path("all.json").write_text(json.dumps(content))


def labelme(*shapes: tuple[str, str]) -> list[str]:
    """Return the notes on shapes given as (label, kind)."""
    save("a.jpg", RGB)
    points = [[1, 1], [9, 1], [9, 9]]
    entries = [{"label": label, "shape_type": kind, "points": points} for label, kind in shapes]
    Path("a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": entries}))
    return read_annotations("labelme", Path("a.json")).notes


def yolo(line: str) -> None:
    Path("labels").mkdir()
    Path("labels/a.txt").write_text(line)
    Path("data.yaml").write_text("names: [cat]")


def convert() -> list[str]:
    project = read_annotations("coco", Path("all.json"))
    prepare_folder(project, Path("out"))
    return project.notes


def notes_of(name: str) -> list[str]:
    notes: list[str] = []
    image.read_image(name, on_note=notes.append)
    return notes


def inputs_of(name: str) -> list[str]:
    return [str(error) for error in find_inputs([name])[1]]


def check(root: Path) -> list[str]:
    data = folder(root)
    data.require_classes()
    for item in data.items:
        data.read(item)
    return data.problems


def files(*names: str) -> None:
    Path("photos").mkdir()
    save("photos/a.jpg", RGB)
    for name in names:
        (Path("photos") / name).touch()


CASES: dict[str, tuple[Callable[[], object], Callable[[], list[str]]]] = {
    "several pages": (lambda: pages("scan.tif"), lambda: notes_of("scan.tif")),
    "an animated GIF, WebP, PNG or AVIF": (lambda: pages("cat.gif"), lambda: notes_of("cat.gif")),
    "more bands than colours": (bands, lambda: notes_of("scene.tif")),
    "10, 12 or 14 bits stored in 16": (
        lambda: save("scan.png", RGB[..., 0].astype(np.uint16) * 16),
        lambda: notes_of("scan.png"),
    ),
    "HEIC without the extra": (
        lambda: Path("photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)),
        lambda: notes_of("photo.heic"),
    ),
    "camera raw": (
        lambda: Path("photo.raf").write_bytes(b"FUJIFILMCCD-RAW" + bytes(99)),
        lambda: notes_of("photo.raf"),
    ),
    "another kind of picture": (
        lambda: Path("drawing.psd").write_bytes(b"8BPS" + bytes(99)),
        lambda: notes_of("drawing.psd"),
    ),
    "an empty file": (lambda: Path("photo.jpg").touch(), lambda: notes_of("photo.jpg")),
    "no file": (lambda: None, lambda: notes_of("photo.jpg")),
    "a folder of videos alone": (
        lambda: [Path("clips").mkdir(), Path("clips/dog.mp4").touch()],
        lambda: inputs_of("clips"),
    ),
    "a folder of other pictures": (lambda: files("b.cr2", "c.psd"), lambda: inputs_of("photos")),
    "a mask of another size": (lambda: masks(np.zeros((9, 9), np.uint8)), lambda: check(Path())),
    "a mask of the pixels before the EXIF orientation": (
        lambda: [masks(np.zeros((12, 16), np.uint8)), Path("images/a.png").unlink(), turned("images/a.jpg")],
        lambda: check(Path()),
    ),
    "a value that is no class": (lambda: masks(RGB[..., 0] // 16), lambda: check(Path())),
    "masks of 0 and 255": (lambda: masks((RGB[..., 0] > 99) * np.uint8(255)), lambda: check(Path())),
    "an unknown colour": (lambda: masks(RGB + np.array([1, 2, 3], np.uint8)), lambda: check(Path())),
    "a class called void, unlabeled or ignore": (
        lambda: masks(RGB[..., 0] // 100, "background\ncat\nvoid\n"),
        lambda: check(Path()),
    ),
    "a JPEG mask": (
        lambda: [masks(RGB[..., 0] * 0), Image.fromarray(RGB).save("masks/a.png", format="JPEG")],
        lambda: check(Path()),
    ),
    "boxes without masks": (
        lambda: annotations(bbox=[1, 1, 5, 5]),
        lambda: read_annotations("coco", Path("all.json")).notes,
    ),
    "a crowd": (
        lambda: annotations(segmentation=[[1, 1, 9, 1, 9, 9]], iscrowd=1),
        lambda: read_annotations("coco", Path("all.json")).notes,
    ),
    "lines, points, tags": (lambda: None, lambda: labelme(("cat", "line"))),
    "regions of an image that is not listed": (
        lambda: annotations(image_id=7, segmentation=[[1, 1, 9, 1, 9, 9]]),
        lambda: read_annotations("coco", Path("all.json")).notes,
    ),
    "a shape outside the image": (lambda: annotations(segmentation=[[20, 1, 25, 1, 25, 9]]), convert),
    "a label called void or unlabeled": (lambda: None, lambda: labelme(("void", "polygon"))),
    "a name in two spellings": (lambda: None, lambda: labelme(("cat", "polygon"), ("Cat", "polygon"))),
    "CVAT for video": (
        lambda: Path("a.xml").write_text("<annotations><track/></annotations>"),
        lambda: read_annotations("cvat", Path("a.xml")).notes,
    ),
    "an unknown class of YOLO": (lambda: yolo("7 0 0 1 0 1 1"), lambda: read_annotations("yolo", Path()).notes),
    "coordinates far outside": (lambda: annotations(segmentation=[[1, 1, 9e9, 1, 9, 9]]), convert),
    "run lengths that do not fill the image": (
        lambda: annotations(segmentation={"size": [12, 16], "counts": [5, 5]}),
        convert,
    ),
    "an image that is not there": (
        lambda: [annotations(segmentation=[[1, 1, 9, 1, 9, 9]]), Path("a.jpg").unlink()],
        convert,
    ),
}


def test_every_documented_message_has_a_case() -> None:
    assert tables().keys() == CASES.keys()


@pytest.mark.parametrize("title", CASES)
def test_documented_messages_are_the_real_ones(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image, "_register_heif", lambda: None)
    Image.init()  # registers all formats before the list is patched
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    make, read = CASES[title]
    make()
    try:
        output = read()
    except FusionerError as error:
        output = [str(error)]
    assert output == [tables().get(title)]
