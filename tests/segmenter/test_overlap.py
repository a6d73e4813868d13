"""The options overlap and instances, and the reasons for labels without pixels, in results, drawings and files."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.ndimage import label as connected
from skimage.draw import polygon as inside

from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions
from fusioner.regions import MIN_REGION, decode_mask, encode_empty, encode_mask
from fusioner.segmentation import Segmentation
from fusioner.segmenter import Segmenter
from fusioner.visualization import colour

LABELS = ["cows", "calf", "dog", "hay / straw"]
OVERLAP, INSTANCES = InferenceOptions(overlap=True), InferenceOptions(instances=True)
BOTH = InferenceOptions(overlap=True, instances=True)


def test_a_mask_without_pixels_has_run_lengths() -> None:
    assert encode_empty((3, 5)) == encode_mask(np.zeros((3, 5), bool))
    assert not decode_mask(encode_empty((3, 5))).any()


def segmentation(masks: dict[str, np.ndarray], options: InferenceOptions, inside: float = 3.0) -> Segmentation:
    logits = np.stack([np.where(mask, inside - 0.5 * i, -4.0) for i, mask in enumerate(masks.values())])
    image = np.full((*logits.shape[1:], 3), 100, np.uint8)
    return Segmentation.from_logits(image, list(masks), logits.astype(np.float32), options, name="field.jpg")


def field(options: InferenceOptions) -> Segmentation:
    """Return a result of two cows, a less probable calf on one, no dog, and hay in two large patches and a speck."""
    masks = {label: np.zeros((60, 90), bool) for label in LABELS}
    masks["cows"][5:25, 5:30] = masks["cows"][5:35, 50:70] = masks["calf"][5:25, 5:30] = True
    masks["hay / straw"][45:55, 5:25] = masks["hay / straw"][40:50, 40:70] = masks["hay / straw"][58, 88] = True
    return segmentation(masks, options)


def test_overlapping_masks_are_the_probabilities_above_the_threshold(tiny_segmenter: Segmenter) -> None:
    image, labels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8), ["cat", "sofa", "grass"]
    result = tiny_segmenter(image, labels, overlap=True, threshold=0.4)
    for label, plane in zip(labels, result.probabilities.astype(np.float32), strict=True):
        mask, distinct = result.mask(label), np.abs(plane - 0.4) > 1e-3  # float16
        assert np.array_equal(mask[distinct], (plane > 0.4)[distinct])
        assert result.areas[label] == mask.sum()
        assert result.scores[label] == pytest.approx(plane[mask].mean(), abs=1e-3)
    assert sum(result.coverage.values()) > 1


def test_a_pixel_may_have_several_labels_and_the_map_has_the_smallest() -> None:
    result = field(OVERLAP)
    assert (result.mask("cows") & result.mask("calf")).sum() == result.areas["calf"] == 500
    assert result.boxes["calf"] == (5, 5, 25, 20)
    assert result.label_map[10, 10] == 2
    assert result.label_map[10, 60] == 1
    assert list(result.found) == ["cows", "hay / straw", "calf"]
    assert not result.mask("dog").any()
    assert result.polygons("calf")[0][0].tolist() == [[5, 5], [30, 5], [30, 25], [5, 25]]
    assert result.outscored == {}


def test_overlap_needs_a_background() -> None:
    with pytest.raises(FusionerError, match="do not combine overlap and no background"):
        InferenceOptions(overlap=True, background=False)


def test_files_hold_overlapping_masks(tmp_path: Path) -> None:
    result = field(OVERLAP)
    for entry in json.loads(result.to_bytes("coco"))["annotations"] + json.loads(result.to_bytes("json"))["segments"]:
        label = LABELS[entry.get("category_id", entry["id"]) - 1] if "category_id" in entry else entry["label"]
        assert np.array_equal(decode_mask(entry.get("segmentation") or entry["rle"]), result.mask(label))
    with np.load(io.BytesIO(result.to_bytes("npz"))) as content:
        assert all(
            np.array_equal(mask, result.mask(label)) for mask, label in zip(content["masks"], LABELS, strict=True)
        )
    with zipfile.ZipFile(io.BytesIO(result.to_bytes("binary"))) as archive:
        assert archive.namelist() == ["1-cows.png", "4-hay_straw.png", "2-calf.png"]
        assert np.array_equal(np.asarray(Image.open(archive.open("2-calf.png"))), result.mask("calf") * np.uint8(255))
    lines = result.to_bytes("yolo").decode().splitlines()
    assert sorted(line.split()[0] for line in lines) == ["0", "0", "1", "3", "3", "3"]
    assert {path.name for path in result.save(tmp_path).values()} == {
        "field.overlay.png", "field.masks.zip", "field.json"
    }  # fmt: skip
    for write in (lambda: result.to_bytes("mask"), lambda: result.save(tmp_path, formats=["json", "mask"])):
        with pytest.raises(FusionerError, match="one label per pixel: choose binary"):
            write()


def test_overlapping_masks_are_drawn_over_each_other() -> None:
    picture = np.asarray(field(OVERLAP).overlay(opacity=0.5, legend=False)).astype(int)
    scale = picture.shape[0] // 60
    cow = (100 + np.array(colour(1))) / 2
    assert np.abs(picture[15 * scale, 60 * scale] - cow).max() <= 1
    assert np.abs(picture[15 * scale, 15 * scale] - (cow + np.array(colour(2))) / 2).max() <= 1


def test_reasons_distinguish_absent_from_outscored_labels() -> None:
    result = field(InferenceOptions())
    assert result.outscored == {"calf": "cows"}
    assert result.peaks["calf"] == pytest.approx(1 / (1 + np.exp(-2.5)))
    assert result.peaks["dog"] == pytest.approx(1 / (1 + np.exp(4)))
    content = {entry["label"]: entry for entry in json.loads(result.to_bytes("json"))["segments"]}
    assert content["calf"]["outscored_by"] == "cows"
    assert content["calf"]["peak"] == pytest.approx(result.peaks["calf"], abs=1e-6)
    assert content["dog"]["outscored_by"] is None


def test_notes_are_attached_to_their_labels() -> None:
    result = segmentation(dict.fromkeys(["wheel", "猫", "red car", "blue car"], np.ones((4, 4), bool)), OVERLAP)
    for word, note in zip(["red car", "wheel", "猫"], result.notes, strict=True):
        assert word in note
    assert json.loads(result.to_bytes("json"))["notes"] == result.notes


@pytest.mark.parametrize("options", [INSTANCES, BOTH])
def test_regions_are_separate_objects(options: InferenceOptions) -> None:
    result = field(options)
    boxes = [(region.label, region.box) for region in result.regions if region.label != "calf"]
    assert boxes == [
        ("cows", (50, 5, 20, 30)),
        ("cows", (5, 5, 25, 20)),
        ("hay / straw", (40, 40, 30, 10)),
        ("hay / straw", (5, 45, 20, 10)),
    ]  # the largest first, without the speck
    assert ("calf" in [region.label for region in result.regions]) is options.overlap
    for region in result.regions:
        assert region.mask.sum() == region.pixels
        assert (region.mask <= result.mask(region.label)).all()
        assert region.score == pytest.approx(result.probability(region.label)[region.mask].mean(), abs=1e-3)


def test_files_list_regions() -> None:
    result = field(INSTANCES)
    coco = json.loads(result.to_bytes("coco"))["annotations"]
    assert [entry["id"] for entry in coco] == [1, 2, 3, 4]
    assert [entry["category_id"] for entry in coco] == [1, 1, 4, 4]
    assert [tuple(entry["bbox"]) for entry in coco] == [region.box for region in result.regions]
    assert [entry["area"] for entry in coco] == [region.pixels for region in result.regions] == [600, 500, 300, 200]
    described = json.loads(result.to_bytes("json"))["segments"]
    assert [entry["label"] for entry in described] == ["cows", "cows", "calf", "dog", "hay / straw", "hay / straw"]
    assert [entry["pixels"] for entry in described] == [600, 500, 0, 0, 300, 200]
    assert len(result.to_bytes("yolo").splitlines()) == len(json.loads(result.to_bytes("labelme"))["shapes"]) == 4
    assert len(json.loads(result.to_bytes("geojson"))["features"]) == 4
    image: Any = ElementTree.fromstring(result.to_bytes("cvat")).find("image")
    assert [(entry.get("label"), entry.get("width")) for entry in image][:2] == [("cows", "20"), ("cows", "25")]
    with zipfile.ZipFile(io.BytesIO(result.to_bytes("binary"))) as archive:
        assert archive.namelist()[:2] == ["1-cows-1.png", "1-cows-2.png"]


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_regions_are_the_4_connected_components(mask: np.ndarray) -> None:
    result = segmentation({"cat": mask}, INSTANCES)
    components: Any = connected(mask)
    expected = [components[0] == number for number in range(1, components[1] + 1)]
    assert sorted(region.mask.tobytes() for region in result.regions) == sorted(mask.tobytes() for mask in expected)


def test_the_largest_region_of_a_small_label_is_kept() -> None:
    mask = np.zeros((300, 300), bool)
    mask[10, 10] = mask[20, 20:25] = True
    assert mask.sum() < MIN_REGION * mask.size
    (region,) = segmentation({"cat": mask}, INSTANCES).regions
    assert region.box == (20, 20, 5, 1)


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_encode_the_mask(mask: np.ndarray) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_polygons_of_regions_fill_them() -> None:
    for region in field(BOTH).regions:
        points = region.polygon[0] - 0.5
        filled = np.zeros(region.size, bool)
        filled[inside(points[:, 1], points[:, 0], region.size)] = True
        assert np.array_equal(filled, region.mask)
