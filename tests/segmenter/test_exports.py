"""Test that other tools read the same masks from result files, up to rasterisation."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as masks
from pycocotools.coco import COCO
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    binary_fill_holes,
    gaussian_filter,
    label,
)
from skimage.draw import polygon as inside

from fusioner.errors import FusionerError
from fusioner.formats import FORMATS
from fusioner.polygons import join_holes, trace_polygons
from fusioner.segmentation import Segmentation

LABELS = ("cat", "sofa & <chair>", "dog")
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def segmentation(label_map: np.ndarray) -> Segmentation:
    """Return a result with this label map."""
    logits = torch.stack([torch.from_numpy(np.where(label_map == i, 3.0, -3.0)) for i in (1, 2, 3)]).float()
    rgb = np.random.default_rng(0).integers(0, 256, (*label_map.shape, 3), dtype=np.uint8)
    return Segmentation.from_logits(rgb, LABELS, logits.numpy(), name="photo.jpg")


@pytest.fixture
def result() -> Segmentation:
    """Return a result with a ring around a ring, a region of two parts that touch at a corner, and no dog."""
    label_map = np.zeros((40, 60), np.uint16)
    label_map[4:30, 5:35] = 1
    label_map[8:26, 10:30] = 0
    label_map[14:20, 16:24] = 1
    label_map[2:8, 40:48] = label_map[8:12, 48:58] = 2
    return segmentation(label_map)


def even_odd(rings: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Fill rings by skimage, whose pixel centres have integer coordinates."""
    filled = np.zeros(shape, bool)
    for ring in rings:
        points = np.asarray(ring, float) - 0.5
        filled[inside(points[:, 1], points[:, 0], shape)] ^= True
    return filled


@given(MASKS)
@settings(deadline=None)
def test_traced_masks_filled_are_the_masks(mask: np.ndarray) -> None:
    polygons = trace_polygons(mask)
    regions: Any = label(mask)  # 4-connected
    assert len(polygons) == regions[1]
    filled = np.zeros(mask.shape, bool)
    for polygon in polygons:
        part = even_odd(polygon, mask.shape)
        assert not (filled & part).any()
        assert np.array_equal(part, even_odd([join_holes(polygon)], mask.shape))
        filled |= part
        for ring in polygon:
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring)  # corners are unique
    assert np.array_equal(filled, mask)


def test_coco_reads_back_the_same_masks(result: Segmentation, tmp_path: Path) -> None:
    dataset = COCO(str(result.save(tmp_path, "photo", ["coco"])["coco"]))
    names = {category["id"]: category["name"] for category in dataset.loadCats(dataset.getCatIds())}
    assert list(names.values()) == list(LABELS)
    found = dataset.loadAnns(dataset.getAnnIds())
    assert [names[entry["category_id"]] for entry in found] == list(result.found)
    for entry in found:
        mask = result.mask(names[entry["category_id"]])
        assert np.array_equal(dataset.annToMask(entry), mask)
        assert (entry["area"], tuple(entry["bbox"])) == (mask.sum(), result.boxes[names[entry["category_id"]]])


@given(MASKS.filter(np.any))
@settings(deadline=None)
def test_pycocotools_makes_the_same_mask_of_the_polygons(mask: np.ndarray) -> None:
    polygons = json.loads(segmentation(mask.astype(np.uint16)).to_bytes("coco"))["annotations"][0]["polygons"]
    filled = masks.decode(masks.merge(masks.frPyObjects(polygons, *mask.shape)))
    assert np.array_equal(filled, mask)


def painted(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fill a polygon as LabelMe does (Pillow, outline included), which resembles OpenCV's fillPoly for YOLO."""
    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points.tolist()], outline=1, fill=1)
    return np.array(canvas)


def nearly(read: np.ndarray, mask: np.ndarray) -> bool:
    """Return whether two masks agree within one pixel and the outline that other programs add."""
    box = np.ones((3, 3))
    return bool((read >= binary_erosion(mask, box)).all() and (read <= binary_dilation(mask, box, 2)).all())


def test_labelme_reads_back_the_simplified_masks(result: Segmentation) -> None:
    content = json.loads(result.to_bytes("labelme"))
    assert (content["imagePath"], content["imageHeight"], content["imageWidth"]) == ("photo.jpg", 40, 60)
    for name in result.found:
        shapes = [np.array(shape["points"]) for shape in content["shapes"] if shape["label"] == name]
        read = np.any([painted(points, (40, 60)) for points in shapes], axis=0)
        bridges = np.zeros((40, 60), bool)
        if name == "cat":  # the line to a hole is painted too
            bridges[4:9, 5:11] = True
        assert nearly(read & ~(bridges & ~result.mask(name)), result.mask(name))


def test_yolo_reads_back_the_simplified_masks(result: Segmentation) -> None:
    lines = [line.split() for line in result.to_bytes("yolo").decode().splitlines()]
    assert {int(line[0]) for line in lines} == {0, 1}
    shapes = [np.array(line[1:], float).reshape(-1, 2) * (60, 40) for line in lines if line[0] == "1"]
    assert nearly(np.any([painted(points, (40, 60)) for points in shapes], axis=0), result.mask(LABELS[1]))


def test_simplified_polygons_report_their_tolerance() -> None:
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(300, 400)), 2)
    mask: Any = binary_fill_holes(noise + 0.4 * (gaussian_filter(noise, 30) > 0) > 0)
    shapes = json.loads(segmentation(mask.astype(np.uint16)).to_bytes("labelme"))["shapes"]
    assert 100 < max(len(shape["points"]) for shape in shapes) <= 200
    for polygon, shape in zip(trace_polygons(mask), shapes, strict=True):
        output = float(shape["description"].removeprefix("simplified by up to ").removesuffix(" px"))
        start = np.array(shape["points"], float)
        line = np.roll(start, -1, axis=0) - start
        offset = polygon[0][:, None] - start  # from every vertex of the mask to every edge
        share = np.clip((offset * line).sum(-1) / (line**2).sum(-1), 0, 1)
        assert np.hypot(*(offset - share[..., None] * line).T).min(axis=0).max() <= output + 0.05


@given(arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
@settings(deadline=None)
def test_cvat_reads_back_the_same_masks(label_map: np.ndarray) -> None:
    result = segmentation(label_map)
    image = ElementTree.fromstring(result.to_bytes("cvat")).find("image")
    assert image is not None
    assert [entry.get("label") for entry in image] == list(result.found)
    for entry in image:
        left, top, width, height = (int(entry.get(key, "")) for key in ("left", "top", "width", "height"))
        runs = [int(run) for run in entry.get("rle", "").split(",")]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)  # runs start outside the mask
        read = np.zeros(label_map.shape, bool)
        read[top : top + height, left : left + width] = flat.reshape(height, width)
        assert np.array_equal(read, result.mask(entry.get("label", "")))


def test_geojson_reads_back_the_same_masks(result: Segmentation) -> None:
    features = json.loads(result.to_bytes("geojson"))["features"]
    assert [entry["properties"]["label"] for entry in features] == list(result.found)
    for entry in features:
        rings = [ring for polygon in entry["geometry"]["coordinates"] for ring in polygon]
        assert all(ring[0] == ring[-1] for ring in rings)
        read = even_odd([np.array(ring) for ring in rings], (40, 60))
        assert np.array_equal(read, result.mask(entry["properties"]["label"]))


def test_npz_reads_back_everything(result: Segmentation, tmp_path: Path) -> None:
    with np.load(result.save(tmp_path, "photo", ["npz"])["npz"]) as read:
        assert read["labels"].tolist() == list(LABELS)
        assert np.array_equal(read["label_map"], result.label_map)
        assert np.array_equal(read["probabilities"], result.probabilities)


def test_every_kind_is_the_same_in_a_file_and_in_memory(result: Segmentation, tmp_path: Path) -> None:
    paths = result.save(tmp_path, "photo", list(FORMATS))
    assert result.save(tmp_path, "photo", "json, coco") == {name: paths[name] for name in ("json", "coco")}
    assert {kind: path.name for kind, path in paths.items()} == {
        kind: f"photo{file_format.suffix}" for kind, file_format in FORMATS.items()
    }
    for kind, path in paths.items():
        if kind != "npz":  # a zip file contains the time
            assert path.read_bytes() == result.to_bytes(kind)
    with pytest.raises(FusionerError, match="tiff"):
        result.to_bytes("tiff")


def test_a_cutout_is_the_label_and_nothing_else(result: Segmentation) -> None:
    cut = np.asarray(result.cutout("cat", crop=False))
    assert np.array_equal(cut[..., 3] == 255, result.mask("cat"))
    assert np.array_equal(cut[..., :3], result.image)
    x, y, width, height = result.boxes["cat"]
    assert result.cutout("cat").size == (width, height) == (30, 26)
    assert np.array_equal(np.asarray(result.cutout("cat")), cut[y : y + height, x : x + width])
    soft = np.asarray(result.cutout("cat", soft=True, crop=False))[..., 3]
    assert set(np.unique(soft)) == {12, 243}  # sigmoid of -3 and 3
    with pytest.raises(FusionerError, match="no 'dog'"):
        result.cutout("dog")


def test_confidence_is_that_of_the_decision(result: Segmentation) -> None:
    assert np.allclose(result.confidence, 1 / (1 + np.exp(-3.0)), atol=1e-3)  # every pixel has a logit of 3


def test_boxes_hold_all_pixels_and_no_row_more(result: Segmentation) -> None:
    assert result.boxes == {"cat": (5, 4, 30, 26), LABELS[1]: (40, 2, 18, 10), "dog": (0, 0, 0, 0)}
