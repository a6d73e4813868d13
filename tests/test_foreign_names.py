"""Test that file names written by other systems are found: backslashes, case, Unicode form, BOM."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusioner.batch.plan import make_plan
from fusioner.batch.sources import open_source
from fusioner.cli.inputs import find_inputs
from fusioner.data.annotation_formats import read_annotations
from fusioner.data.classes import read_class_colours
from fusioner.data.folder import folder
from fusioner.image import image_size, read_image
from fusioner.io import find_path

HERE = "\u00dcber/Caf\u00e9.JPG"
NAMES = [HERE, HERE.replace("/", "\\"), unicodedata.normalize("NFD", HERE), HERE.lower(), HERE.upper()]
NAMES += [unicodedata.normalize("NFD", HERE.swapcase()).replace("/", "\\")]
BOM = "\ufeff"


@pytest.fixture(params=NAMES, ids=ascii)
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a name of the picture `HERE`, beside another picture."""
    (tmp_path / HERE).parent.mkdir()
    for file in (tmp_path / HERE, (tmp_path / HERE).with_name("other.JPG")):
        Image.new("RGB", (8, 6), "red").save(file, "JPEG")
    monkeypatch.chdir(tmp_path)
    return request.param


def test_pictures_of_commands_lists_and_tables(name: str, tmp_path: Path) -> None:
    assert find_path(name) == Path(HERE)
    assert find_path(tmp_path / name) == tmp_path / HERE
    assert read_image(name).shape == (6, 8, 3)
    assert image_size(Path(name)) == (6, 8)
    assert list(find_inputs([name])[0]) == [Path(HERE)]
    (tmp_path / "list.txt").write_text(f"{BOM}{name}\r\n", "utf-8")
    pq.write_table(pa.table({"path": [name]}), tmp_path / "table.parquet")
    for source in ("list.txt", "table.parquet", name):
        plan = make_plan(opened := open_source(source), tmp_path / f"out of {Path(source).suffix}", None, {})
        (picture,) = plan.pictures(plan[0], opened)
        assert isinstance(picture.content, Path)
        assert picture.content.resolve() == tmp_path / HERE


def test_images_of_annotations(name: str, tmp_path: Path) -> None:
    square = [[1, 1], [5, 1], [5, 5], [1, 5]]
    coco = {"images": [{"id": 1, "file_name": name, "width": 8, "height": 6}], "categories": [{"id": 1, "name": "a"}]}
    coco |= {"annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}]}
    labelme = {"imagePath": name, "shapes": [{"label": "a", "points": square}], "imageHeight": 6, "imageWidth": 8}
    studio = [{"data": {"image": f"/data/upload/{name}"}, "annotations": []}]
    image = f'<image name="{name}" width="8" height="6"><box label="a" xtl="1" ytl="1" xbr="5" ybr="5"/></image>'
    sources: dict[str, tuple[str, Any]] = {
        "coco": ("c.json", coco),
        "labelme": ("l.json", labelme),
        "label-studio": ("s.json", studio),
        "cvat": ("v.xml", f"<annotations>{image}</annotations>"),
    }
    for kind, (file, content) in sources.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (tmp_path / file).write_text(BOM + text, "utf-8")
        (read,) = read_annotations(
            kind, tmp_path / file, tmp_path / "\u00dcber" if kind == "label-studio" else None
        ).images
        assert read.path is not None
        assert read.path.resolve() == tmp_path / HERE
    stem = Path(name.replace("\\", "/")).stem
    for root, labels in (("yolo", "Labels"), ("voc", "Annotations")):
        (tmp_path / root / labels).mkdir(parents=True)
        images = tmp_path / root / ("images" if root == "yolo" else "JPEGImages")
        images.symlink_to(tmp_path / "\u00dcber")
    (tmp_path / "yolo/data.yaml").write_text(f"{BOM}names: [a]\n", "utf-8")
    (tmp_path / f"yolo/Labels/{stem}.txt").write_text(f"{BOM}0 0.1 0.1 0.9 0.1 0.9 0.9\n", "utf-8")
    (tmp_path / f"voc/Annotations/{stem}.xml").write_text("<annotation/>", "utf-8")
    for kind in ("yolo", "voc"):
        (read,) = read_annotations(kind, tmp_path / kind).images
        assert read.path is not None
        assert read.path.resolve() == tmp_path / HERE


def test_folders_lists_and_classes_of_a_data_set(name: str, tmp_path: Path) -> None:
    root, stem = tmp_path / "set", Path(name.replace("\\", "/")).stem
    (root / "Masks").mkdir(parents=True)
    (root / "Images").symlink_to(tmp_path / "\u00dcber")
    Image.new("L", (8, 6), 1).save(root / f"Masks/{stem}.png")
    (root / "Classes.json").write_text(
        BOM + json.dumps({"classes": ["background", "Caf\u00e9"], "colors": {stem: [9, 9, 9]}}), "utf-8"
    )
    (root / "Train.txt").write_text(f"{BOM}{name}\r\n", "utf-8")
    (item,) = folder(root, "train").items
    assert item.image.resolve() == tmp_path / HERE
    assert read_class_colours(root) == {(9, 9, 9): 1}


def test_an_exact_name_has_priority_and_ambiguous_names_are_not_found(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 2:  # requires a case-sensitive file system
        assert [find_path(name, tmp_path) for name in ("A.png", "A.PNG")] == [tmp_path / "A.png", None]
    assert find_path("a.png/b", tmp_path) is None
    assert find_path("x" * 300, tmp_path) is None
    assert find_path("a\0b", tmp_path) is None
