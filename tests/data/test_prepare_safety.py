"""Test that `data prepare` preserves existing files, and paints, reports or rejects every annotation."""

import base64
import io
import json
import math
import random
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner.cli.main import main
from fusioner.data.annotation_formats import read_annotations
from fusioner.data.folder import folder
from fusioner.data.prepare import prepare_folder
from fusioner.data.shapes import fill_box, fill_brush, fill_ellipse, fill_polygons, fill_runs, paste
from fusioner.errors import FusionerError

WIDTH, HEIGHT = 12, 10
SQUARE = [2, 2, 7, 2, 7, 7, 2, 7]


def picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 120, 30)).save(path)
    return path


def picture_bytes(size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, 255).save(stream, "PNG")
    return stream.getvalue()


def instances(path: Path, annotations: list[dict[str, Any]], file_name: str = "a.jpg", **image: Any) -> Path:
    content = {
        "images": [{"id": 1, "file_name": file_name, "width": WIDTH, "height": HEIGHT, **image}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 1, **entry} for entry in annotations],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def convert(source: Path, out: Path, kind: str = "coco", *more: str) -> int:
    return main(["data", "prepare", "folder", str(source), "--from", kind, "--root", str(out), *more])


def snapshot(root: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("name", ["a.jpg", "A.JPG", "b c.png"])
@pytest.mark.parametrize("copy", [(), ("--copy",)])
def test_images_that_lie_in_the_root_stay(tmp_path: Path, name: str, copy: tuple[str, ...]):
    photo = picture(tmp_path / "images" / name)
    content = photo.read_bytes()
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE]}], name)
    for _ in range(2):
        assert convert(source, tmp_path, "coco", *copy) == 0
        assert photo.read_bytes() == content
        assert not photo.is_symlink()
        assert [item.id for item in folder(tmp_path).items] == [photo.stem]


@pytest.mark.parametrize("copy", [(), ("--copy",)])
@pytest.mark.parametrize(
    "occupied",
    ["images/a.jpg", "images/a.png", "images/A.jpg", "masks/a.png", "masks/A.png", "masks/a.tif", "images/a.jpg link"],
)
def test_files_of_others_are_never_replaced(tmp_path: Path, occupied: str, copy: tuple[str, ...]):
    picture(tmp_path / "set" / "a.jpg")
    source = instances(tmp_path / "set" / "all.json", [{"segmentation": [SQUARE]}])
    out = tmp_path / "out"
    target = out / occupied.removesuffix(" link")
    if occupied.endswith("link"):
        target.parent.mkdir(parents=True)
        target.symlink_to(picture(tmp_path / "else.jpg", 200))
    elif occupied.startswith("masks"):
        target.parent.mkdir(parents=True)
        Image.new("L", (WIDTH, HEIGHT), 9).save(target)
    else:
        picture(target, 200)
    before = snapshot(tmp_path)
    assert convert(source, out, "coco", *copy) == 2
    after = snapshot(tmp_path)
    assert before.items() <= after.items()
    assert not any(name.startswith("out/.part") for name in after)


def test_masks_made_here_follow_changed_annotations(tmp_path: Path):
    picture(tmp_path / "a.jpg")
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE]}])
    for category in (1, 2):
        instances(source, [{"segmentation": [SQUARE], "category_id": category}])
        assert convert(source, tmp_path / "out") == 0
        assert folder(tmp_path / "out").pairs() == [("a", category)]


def test_missing_images_stop_or_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE]}])
    content = json.loads(source.read_text())
    content["images"].append({"id": 2, "file_name": "gone.jpg"})
    source.write_text(json.dumps(content))
    picture(tmp_path / "A.jpg")
    assert convert(source, tmp_path / "out") == 2
    assert "gone.jpg" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "coco", "--skip-missing") == 0
    assert "1 images are missing and were left out" in capsys.readouterr().out
    assert [item.id for item in folder(tmp_path / "out").items] == ["A"]


def test_names_are_merged_or_refused(tmp_path: Path):
    picture(tmp_path / "a.jpg")
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE], "category_id": 2}])
    text = source.read_text()
    source.write_text(text.replace('"dog"', '" Cat "'))
    project = read_annotations("coco", source)
    assert project.classes == ["cat"]
    assert project.notes == ["class name 'Cat' was merged into 'cat'"]
    for name in ("", "  ", "cat\\nbig", "a\\u2028b"):
        source.write_text(text.replace('"dog"', f'"{name}"'))
        assert convert(source, tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()


numbers = st.one_of(
    st.integers(-200, 200), st.floats(), st.sampled_from(["3", "x", None, 1e30, -1e9, True, [1, 2]]), st.floats(-30, 30)
)
segmentations = st.one_of(
    st.none(),
    st.lists(st.lists(numbers, max_size=10), max_size=3),
    st.just([SQUARE]),
    st.lists(st.lists(st.lists(st.integers(0, 12), min_size=2, max_size=2), max_size=5), max_size=2),
    st.fixed_dictionaries({"size": st.just([HEIGHT, WIDTH]), "counts": st.lists(st.integers(-5, 120), max_size=4)}),
    st.fixed_dictionaries({"counts": st.text(max_size=8)}),
    st.integers(0, HEIGHT * WIDTH).map(lambda n: {"size": [HEIGHT, WIDTH], "counts": [n, HEIGHT * WIDTH - n]}),
)
ids = st.sampled_from([1, "1", 1.0, 2, "2", 3, "x", None])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(ids, ids, segmentations, st.booleans()), max_size=5),
    st.sampled_from([HEIGHT, "10", 10.0, None, 0]),
)
def test_every_region_is_painted_reported_or_refused(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[Any, Any, Any, bool]], height: Any
):
    root = tmp_path_factory.mktemp("set")
    picture(root / "a.jpg")
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    source = instances(root / "i.json", [dict(zip(keys, entry, strict=True)) for entry in entries], height=height)
    project, message = None, ""
    try:
        project = read_annotations("coco", source)
        prepare_folder(project, root / "out")
    except FusionerError as error:
        message = str(error)
    if message or project is None:
        assert str(root) in message or "a.jpg" in message
        return
    left_out = Counter(project.left_out)
    del left_out["crowd regions are ignored"]
    assert project.painted + sum(left_out.values()) == len(entries)
    data = folder(root / "out")
    assert len(data.items) == 1
    data.read(data.items[0])


BITMAP = base64.b64encode(picture_bytes((2, 2))).decode()
KINDS = {
    "labelme": ("polygon", "rectangle", "circle", "mask", "rotation", "line", "point", None),
    "cvat": ("polygon", "box", "ellipse", "mask", "polyline", "points", "tag", "skeleton"),
    "supervisely": ("polygon", "rectangle", "bitmap", "line", "point", "cuboid"),
    "label-studio": ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels", "choices", "relation"),
    "yolo": ("polygon",),
    "voc": ("polygon", "box"),
}


def write_shapes(root: Path, source_format: str, shapes: list[tuple[str, Any, list[Any]]]) -> None:
    """Write an annotation of `a.jpg` whose shapes (kind, label, numbers) may be invalid."""
    pairs = [
        (kind, label, values, [values[i : i + 2] for i in range(0, len(values), 2)]) for kind, label, values in shapes
    ]
    text = ""
    if source_format == "labelme":
        entries = [
            {"label": label, "shape_type": kind, "points": points, "mask": BITMAP} for kind, label, _, points in pairs
        ]
        text = json.dumps({"imagePath": "a.jpg", "shapes": entries, "imageHeight": HEIGHT, "imageWidth": WIDTH})
    elif source_format == "cvat":
        document = ElementTree.Element("annotations")
        image = ElementTree.SubElement(document, "image", name="a.jpg", width=str(WIDTH), height=str(HEIGHT))
        names = ("xtl", "ytl", "xbr", "ybr", "cx", "cy", "rx", "ry", "left", "top", "width", "height", "rotation")
        for kind, label, values, points in pairs:
            attributes = dict(zip(names, map(str, [*values, *values, *values]), strict=False))
            attributes |= {"points": ";".join(",".join(map(str, point)) for point in points)}
            attributes |= {"rle": ",".join(map(str, values))} | ({} if label is None else {"label": str(label)})
            ElementTree.SubElement(image, str(kind), attributes)
        text = ElementTree.tostring(document, "unicode")
    elif source_format == "supervisely":
        entries = [
            {"classTitle": label, "geometryType": kind, "points": {"exterior": points, "interior": []}}
            | {
                "bitmap": {
                    "origin": values[:2],
                    "data": base64.b64encode(zlib.compress(base64.b64decode(BITMAP))).decode(),
                }
            }
            for kind, label, values, points in pairs
        ]
        text = json.dumps({"size": {"height": HEIGHT, "width": WIDTH}, "objects": entries})
    elif source_format == "label-studio":
        names = ("x", "y", "width", "height", "radiusX", "radiusY", "rotation")
        entries = [
            {"type": kind, "value": {kind: None if label is None else [label], "points": points, "rle": values}
             | dict(zip(names, values, strict=False))}
            for kind, label, values, points in pairs
        ]  # fmt: skip
        text = json.dumps([{"data": {"image": "/data/upload/a.jpg"}, "annotations": [{"result": entries}]}])
    elif source_format == "yolo":
        lines = [
            " ".join(map(str, [{"cat": 0, "dog": 1}.get(label, label or "x"), *values]))
            for _, label, values, _ in pairs
        ]
        text = "\n".join(line.replace("\n", " ") for line in lines)
    elif source_format == "voc":
        document = ElementTree.Element("annotation")
        for kind, label, values, _ in pairs:
            entry = ElementTree.SubElement(document, "object")
            ElementTree.SubElement(entry, "name").text = None if label is None else str(label)
            outline = ElementTree.SubElement(entry, kind if kind == "polygon" else "bndbox")
            for i, value in enumerate(values):
                ElementTree.SubElement(outline, f"{'xy'[i % 2]}{i // 2 + 1}").text = str(value)
        text = ElementTree.tostring(document, "unicode")
    places = {"cvat": "a.xml", "supervisely": "s/ann/a.jpg.json", "yolo": "labels/a.txt", "voc": "Annotations/a.xml"}
    path = root / places.get(source_format, "a.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    (root / "meta.json" if source_format == "supervisely" else root / "data.yaml").write_text(
        json.dumps({"classes": []} if source_format == "supervisely" else {"names": ["cat", "dog"]})
    )


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.lists(
                st.tuples(
                    st.sampled_from(KINDS[name]),
                    st.sampled_from(["cat", "cat", "dog", "Void", "background", 3, None, "", "a\nb"]),
                    st.one_of(st.just(SQUARE), st.lists(st.integers(0, 12), max_size=8), st.lists(numbers, max_size=8)),
                ),
                max_size=4,
            ),
        )
    )
)
def test_every_shape_of_every_format_is_painted_reported_or_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[str, list[tuple[str, Any, list[Any]]]]
):
    source_format, shapes = case
    root = tmp_path_factory.mktemp("set")
    for place in ("a.jpg", "s/img/a.jpg") if source_format == "supervisely" else ("a.jpg",):
        picture(root / place)
    write_shapes(root, source_format, shapes)
    project, mask, message = None, None, ""
    try:
        project = read_annotations(source_format, root, root if source_format in ("yolo", "voc") else None)
        (image,) = project.images
        mask = project.paint(image, (HEIGHT, WIDTH), 255)
    except FusionerError as error:
        message = str(error)
    if project is None or mask is None:
        assert str(root) in message or re.search(r"\ba\b", message)
        return
    assert project.painted + sum(project.left_out.values()) == len(shapes)
    assert set(np.unique(mask)) <= {*range(len(project.classes) + 1), 255}
    assert all(count >= 0 for count in project.left_out.values())


@settings(max_examples=100, deadline=None)
@given(st.integers(-20, 20), st.integers(-20, 20), st.integers(1, 9), st.integers(1, 9))
def test_pasted_masks_are_cut_at_the_frame(left: int, top: int, height: int, width: int):
    pasted = paste(np.ones((height, width), bool), left, top, (HEIGHT, WIDTH))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    np.testing.assert_array_equal(pasted, (x >= left) & (x < left + width) & (y >= top) & (y < top + height))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))
def test_compressed_run_lengths_agree_with_pycocotools(height: int, width: int, seed: int):
    from pycocotools import mask

    bits = np.random.default_rng(seed).random((height, width)) < random.Random(seed).random()
    counts = mask.encode(np.asfortranarray(bits.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(fill_runs(counts, (height, width), column_major=True), bits)


def test_boxes_and_ellipses_are_turned_clockwise_by_any_angle() -> None:
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))
    corners = [
        (40 + dx * cos - dy * sin, 30 + dx * sin + dy * cos) for dx, dy in ((-20, -5), (20, -5), (20, 5), (-20, 5))
    ]
    box, expected = fill_box([20, 25, 60, 35], (60, 80), rotation=30), fill_polygons([corners], (60, 80))
    assert (box & expected).sum() > 0.9 * (box | expected).sum()
    ellipse = fill_ellipse((40, 30), (20, 5), (60, 80), rotation=30)
    assert ellipse[round(30 + 15 * sin), round(40 + 15 * cos)]
    assert not ellipse[round(30 - 15 * sin), round(40 + 15 * cos)]


def test_boxes_turn_clockwise_around_their_pivot():
    upright = fill_box([2, 4, 8, 6], (HEIGHT, WIDTH))
    turned = fill_box([2, 4, 8, 6], (HEIGHT, WIDTH), rotation=90)
    assert upright.sum() == turned.sum() == 12
    np.testing.assert_array_equal(turned, fill_box([4, 2, 6, 8], (HEIGHT, WIDTH)))
    corner = fill_box([5, 2, 9, 4], (HEIGHT, WIDTH), 90, (5, 2))
    np.testing.assert_array_equal(corner, fill_box([3, 2, 5, 6], (HEIGHT, WIDTH)))
    for wrong in (math.nan, math.inf, "x"):
        with pytest.raises(ValueError):
            fill_box([0, 0, 1, 1], (HEIGHT, WIDTH), wrong)


def pack_brush(alpha: np.ndarray) -> bytes:
    """Return the run-length encoding of Label Studio, with one value per block."""
    bits = f"{alpha.size * 4:032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value in alpha.ravel():
        bits += "1" + "00" + f"{2:03b}" + f"{0:08b}"  # red, green and blue
        bits += "0" + "01" + f"{0:04b}" + f"{int(value):08b}"
    return np.packbits([int(bit) for bit in bits]).tobytes()


def test_results_of_label_studio(tmp_path: Path):
    picture(tmp_path / "cat 1.jpg")
    brush = np.zeros((HEIGHT, WIDTH), np.uint8)
    brush[8:, 9:11] = 255
    results = [
        ("polygonlabels", {"points": [[25, 30], [50, 30], [50, 70], [25, 70]], "polygonlabels": ["cat"]}),
        ("brushlabels", {"format": "rle", "rle": list(pack_brush(brush)), "brushlabels": ["dog"]}),
        ("rectanglelabels", {"x": 0, "y": 0, "width": 25, "height": 20, "rectanglelabels": ["dog"]}),
        ("keypointlabels", {"x": 0, "y": 0, "width": 1, "keypointlabels": ["dog"]}),
        ("choices", {"choices": ["indoor"]}),
    ]
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    task = {
        "data": {"note": "mine", "image": "/data/upload/3/0123abcd-cat%201.jpg"},
        "annotations": [{"result": [{"type": kind, "value": value, **sizes} for kind, value in results]}],
    }
    (tmp_path / "export.json").write_text(json.dumps([task]))
    project = read_annotations("label-studio", tmp_path / "export.json")
    prepare_folder(project, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[3:7, 3:6], expected[8:, 9:11], expected[:2, :3] = 1, 2, 2
    data = folder(tmp_path / "out")
    np.testing.assert_array_equal(data.read(data.items[0])[1], expected)
    output = "1 shapes of kind {} mark no area or are not supported and were left out"
    assert project.notes == [output.format("choices"), output.format("keypointlabels")]
    with pytest.raises(ValueError, match="cut short"):
        fill_brush(pack_brush(brush)[:40], (HEIGHT, WIDTH))


@pytest.mark.parametrize("layout", ["labels/train", "train/labels", "labels"])
def test_labels_of_yolo(tmp_path: Path, layout: str):
    labels = tmp_path / layout
    labels.mkdir(parents=True)
    picture(tmp_path / layout.replace("labels", "images") / "a.jpg")
    (labels / "a.txt").write_text("1 0 0 0.5 0 0.5 0.5 0 0.5\n0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("path: .\nnames: {0: cat, 1: dog}\n")
    project = read_annotations("yolo", tmp_path)
    prepare_folder(project, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[:5, :6] = 2
    data = folder(tmp_path / "out")
    np.testing.assert_array_equal(data.read(data.items[0])[1], expected)
    assert project.notes == ["1 shapes of kind box mark no area or are not supported and were left out"]
    (labels / "a.txt").write_text("7 0 0 1 0 1 1\n")
    with pytest.raises(FusionerError, match="no known class"):
        read_annotations("yolo", tmp_path)


def test_masks_and_polygons_of_voc(tmp_path: Path):
    for name in ("a", "b"):
        picture(tmp_path / "JPEGImages" / f"{name}.jpg")
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[:5], mask[5:7] = (64, 0, 0), (224, 224, 192)
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(mask).save(tmp_path / "SegmentationClass" / "a.png")
    (tmp_path / "Annotations").mkdir()
    points = "".join(
        f"<{axis}{i // 2 + 1}>{value}</{axis}{i // 2 + 1}>" for i, value in enumerate(SQUARE) for axis in ["xy"[i % 2]]
    )
    (tmp_path / "Annotations" / "b.xml").write_text(
        f"<annotation><object><name>cat</name><polygon>{points}</polygon></object>"
        "<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"
    )
    project = read_annotations("voc", tmp_path)
    prepare_folder(project, tmp_path / "out")
    data = folder(tmp_path / "out")
    assert data.classes[8] == "cat"
    np.testing.assert_array_equal(np.unique(data.read(data.by_id["a"])[1]), [0, 8, 255])
    assert data.pixel_counts(data.by_id["b"]) == {8: 25}
    assert project.notes == ["1 shapes of kind box mark no area or are not supported and were left out"]


def test_labelme_as_it_is_found(tmp_path: Path):
    content = picture(tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").unlink()
    shape = {"label": "cat", "points": np.reshape(SQUARE, (-1, 2)).tolist()}
    record = {
        "imagePath": "..\\pictures\\photo.png",
        "shapes": [shape],
        "imageData": base64.b64encode(content).decode(),
    }
    (tmp_path / "photo.json").write_text(json.dumps(record))
    prepare_folder(read_annotations("labelme", tmp_path), tmp_path / "out")
    data = folder(tmp_path / "out")
    assert data.items[0].image.read_bytes() == content
    assert data.pixel_counts(data.items[0]) == {1: 25}


@pytest.mark.parametrize(("name", "options"), [("classes.yaml", []), ("classes.txt", ["--mask-values", "255=1"])])
def test_masks_by_colours_or_of_0_and_255(
    tmp_path: Path, name: str, options: list[str], capsys: pytest.CaptureFixture[str]
):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    mask = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    mask[2:5] = 255 if options else (10, 20, 30)
    Image.fromarray(mask).save(tmp_path / "SegmentationClass" / "a.png")
    yaml = "names: [background, cat]\ncolors: {background: '#000000', cat: [10, 20, 30]}"
    (tmp_path / name).write_text("background\ncat" if options else yaml)
    assert convert(tmp_path, tmp_path / "out", "voc", *options) == 0
    data = folder(tmp_path / "out")
    assert data.classes == ("background", "cat")
    assert data.pixel_counts(data.items[0]) == {1: 3 * WIDTH}
    mask[0] = 77
    Image.fromarray(mask).save(tmp_path / "SegmentationClass" / "a.png")
    assert convert(tmp_path, tmp_path / "out", "voc", *options) == 2
    assert ("holds value 77" if options else "colour 77,77,77") in capsys.readouterr().err


def test_mask_values_need_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture(tmp_path / "a.jpg")
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE]}])
    assert convert(source, tmp_path / "out", "coco", "--mask-values", "255=1") == 2
    assert "applies to the masks" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["images", "categories"])
def test_ids_given_twice_are_refused(tmp_path: Path, part: str):
    picture(tmp_path / "a.jpg")
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE]}])
    content = json.loads(source.read_text())
    content[part].append(content[part][0] | {"name": "bird"})
    source.write_text(json.dumps(content))
    with pytest.raises(FusionerError, match=r"same id|have the id"):
        read_annotations("coco", source)


@pytest.mark.parametrize("crowd", [0, "0", 0.0, False, None])
def test_a_crowd_is_a_number_other_than_0(tmp_path: Path, crowd: Any):
    picture(tmp_path / "a.jpg")
    source = instances(tmp_path / "all.json", [{"segmentation": [SQUARE], "iscrowd": crowd}])
    assert read_annotations("coco", source).images[0].shapes[0].label == "cat"


def test_a_turned_rectangle_of_labelme_has_four_corners(tmp_path: Path):
    picture(tmp_path / "a.png")
    corners = [[6, 0], [11, 5], [6, 10], [1, 5]]
    shape = {"label": "cat", "points": corners, "shape_type": "rectangle"}
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    prepare_folder(read_annotations("labelme", tmp_path / "a.json"), tmp_path / "out")
    data = folder(tmp_path / "out")
    assert 40 <= data.pixel_counts(data.items[0])[1] <= 60  # the box that is not rotated has 100


def test_shapes_without_a_label_are_refused_or_counted(tmp_path: Path):
    picture(tmp_path / "a.png")
    shape = {"label": None, "points": np.reshape(SQUARE, (-1, 2)).tolist()}
    (tmp_path / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    with pytest.raises(FusionerError, match="a class is called None"):
        read_annotations("labelme", tmp_path)
    region = {"type": "polygonlabels", "value": {"points": [[0, 0], [9, 0], [9, 9]]}}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [region]}]}
    (tmp_path / "all.json").write_text(json.dumps([task]))
    assert read_annotations("label-studio", tmp_path / "all.json").notes == [
        "1 regions have no label and were left out"
    ]


def test_tracks_of_cvat_for_video_are_named(tmp_path: Path):
    (tmp_path / "annotations.xml").write_text("<annotations><track label='cat'/></annotations>")
    with pytest.raises(FusionerError, match="CVAT for video"):
        read_annotations("cvat", tmp_path)


def test_an_ellipse_smaller_than_any_number_has_no_pixel():
    assert not fill_ellipse((1, 1), (1e-300, 1e-300), (HEIGHT, WIDTH)).any()
