"""The class Segmentation and its files."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from skimage import data

from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions
from fusioner.postprocess import decide
from fusioner.segmentation import Segmentation
from fusioner.visualization import colour


@pytest.fixture
def result() -> Segmentation:
    """Return cat in the left half, sofa in the lower right quarter and no dog, with logits at a third of the size."""
    logits = torch.full((3, 20, 30), -4.0)
    logits[0, :, :15] = 3.0
    logits[1, 10:, 15:] = 1.0
    image = np.asarray(Image.fromarray(data.chelsea()).resize((90, 60)))
    return Segmentation.from_logits(image, ["cat", "sofa", "dog"], logits.numpy(), name="chelsea.png")


def read_png(path: Path) -> tuple[str, np.ndarray]:
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


def test_attributes(result: Segmentation) -> None:
    assert result.label_map.shape == (60, 90)
    assert result.label_map.dtype == np.uint16
    assert (result.width, result.height) == (90, 60)
    assert result.label_map[30, 3] == 1
    assert result.label_map[50, 80] == 2
    assert result.label_map[5, 80] == 0
    assert result.mask("sofa").dtype == bool
    assert np.array_equal(result.mask("sofa"), result.label_map == 2)
    assert result.areas["cat"] == result.mask("cat").sum()
    assert result.coverage["cat"] == pytest.approx(result.mask("cat").mean())
    assert result.coverage["dog"] == 0
    assert list(result.found) == ["cat", "sofa"]
    assert repr(result) == "<Segmentation of chelsea.png, 90 x 60: cat 50.0%, sofa 23.6%>"


def test_scores_are_the_mean_probability_over_the_labels_own_pixels(result: Segmentation) -> None:
    assert result.scores["dog"] == 0.0
    for label in ("cat", "sofa"):
        mean = result.probability(label).astype(np.float64)[result.mask(label)].mean()
        assert result.scores[label] == pytest.approx(mean, abs=1e-3)


def test_probabilities(result: Segmentation) -> None:
    every = result.probabilities
    assert every.shape == (3, 60, 90)
    assert every.dtype == np.float16
    assert np.array_equal(every[1], result.probability("sofa"))
    again = decide(every.astype(np.float32), 0.5)
    assert (again == result.label_map).mean() > 0.99
    assert every[0].max() <= torch.tensor(3.0).sigmoid() + 1e-3


def test_a_new_threshold_reuses_the_logits(result: Segmentation) -> None:
    strict = Segmentation.from_logits(
        result.image, result.labels, np.asarray(result.logits), InferenceOptions(threshold=0.9)
    )
    assert list(strict.found) == ["cat"]
    full = Segmentation.from_logits(
        result.image, result.labels, np.asarray(result.logits), InferenceOptions(background=False)
    )
    assert full.label_map.min() == 1
    assert sum(full.coverage.values()) == pytest.approx(1.0)
    with pytest.raises(FusionerError, match="between 0 and 1"):
        Segmentation.from_logits(result.image, result.labels, np.asarray(result.logits), InferenceOptions(threshold=2))
    with pytest.raises(ValueError, match="2 labels for 3 planes"):
        Segmentation.from_logits(result.image, ["a", "b"], np.asarray(result.logits))


def test_an_unknown_label_is_one_sentence(result: Segmentation) -> None:
    for query in (result.mask, result.probability, result.number):
        with pytest.raises(FusionerError, match="'horse' is not among the labels: cat, sofa, dog"):
            query("horse")


def test_the_files(result: Segmentation, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "out", "photo")
    assert {kind: path.name for kind, path in paths.items()} == {
        "overlay": "photo.overlay.png",
        "mask": "photo.png",
        "json": "photo.json",
    }
    assert sorted(os.listdir(tmp_path / "out")) == ["photo.json", "photo.overlay.png", "photo.png"]
    with Image.open(paths["mask"]) as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), result.label_map)
        assert mask.getpalette() == [value for number in range(4) for value in colour(number)]
    content = json.loads(paths["json"].read_text("utf-8"))
    assert content["image"] == "chelsea.png"
    assert (content["width"], content["height"]) == (90, 60)
    assert content["labels"] == ["cat", "sofa", "dog"]
    assert content["threshold"] == 0.5
    assert content["background"] is True
    assert content["mask"]["bits"] == 8
    for number, segment in enumerate(content["segments"], start=1):
        assert segment["id"] == number
        assert segment["pixels"] == result.areas[segment["label"]]
        assert segment["score"] == pytest.approx(result.scores[segment["label"]], abs=1e-6)
        assert segment["rle"]["size"] == [60, 90]
        assert np.array_equal(coco.decode(segment["rle"]), result.label_map == number)
    mode, _ = read_png(paths["overlay"])
    assert mode == "RGB"


def test_saving_again_replaces(result: Segmentation, tmp_path: Path) -> None:
    result.save(tmp_path)
    before = (tmp_path / "chelsea.json").read_bytes()
    Segmentation.from_logits(result.image, result.labels, -np.asarray(result.logits), name=result.name).save(tmp_path)
    assert (tmp_path / "chelsea.json").read_bytes() != before
    assert len(os.listdir(tmp_path)) == 3


def test_more_than_255_labels_make_a_16_bit_mask(tmp_path: Path) -> None:
    logits = torch.full((300, 4, 5), -3.0)
    logits[299, 0], logits[255, 1] = 3.0, 3.0
    names = [f"thing {index}" for index in range(1, 301)]
    result = Segmentation.from_logits(np.zeros((4, 5, 3), np.uint8), names, logits.numpy())
    paths = result.save(tmp_path)
    mode, mask = read_png(paths["mask"])
    assert mode == "I;16"
    assert mask[:, 0].tolist() == [300, 256, 0, 0]
    content = json.loads(paths["json"].read_text())
    assert content["mask"]["bits"] == 16
    assert len(content["segments"]) == 300
    assert coco.decode(content["segments"][299]["rle"]).sum() == 5


def test_255_labels_still_fit_a_palette(tmp_path: Path) -> None:
    logits = torch.full((255, 2, 2), -3.0)
    logits[254] = 3.0
    paths = Segmentation.from_logits(np.zeros((2, 2, 3), np.uint8), [str(i) for i in range(255)], logits.numpy()).save(
        tmp_path
    )
    mode, mask = read_png(paths["mask"])
    assert mode == "P"
    assert mask.tolist() == [[255, 255], [255, 255]]


def test_labels_of_any_language_are_kept(tmp_path: Path) -> None:
    names = ["кошка", "猫", "قطة", "🐈", "a\u0301"]
    result = Segmentation.from_logits(
        np.zeros((40, 50, 3), np.uint8), names, torch.randn(5, 4, 5).numpy(), name="a\udcff.jpg"
    )
    content = json.loads(result.save(tmp_path)["json"].read_text("utf-8"))
    assert content["labels"] == names
    assert content["image"] == "a?.jpg"


@pytest.mark.parametrize("stem", ["", "a/b", "..", "/etc/x", "."])
def test_a_stem_with_folders_is_refused(result: Segmentation, tmp_path: Path, stem: str) -> None:
    with pytest.raises(FusionerError, match="is no file name"):
        result.save(tmp_path, stem)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_no_file(full_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)
    result = Segmentation.from_logits(noise, ["noise"], torch.randn(1, 700, 700).numpy())
    with pytest.raises(FusionerError, match=r"cannot write .*image\.\S*: there is no space left"):
        result.save(full_disk)
    assert os.listdir(full_disk) == []


def test_a_file_in_the_folders_place(result: Segmentation, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(FusionerError, match="a part of its path is a file"):
        result.save(tmp_path / "out")


def test_save_uses_the_pictures_stem_and_never_replaces_the_picture(result: Segmentation, tmp_path: Path) -> None:
    assert result.save(tmp_path / "out")["mask"].name == "chelsea.png"
    result.save(tmp_path / "out")  # replaces its earlier mask
    picture = tmp_path / "chelsea.png"
    Image.fromarray(result.image).save(picture)
    content = picture.read_bytes()
    with pytest.raises(FusionerError, match="was not written by fusioner"):
        result.save(tmp_path)
    assert picture.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()].count("chelsea.json") == 0


def test_array_and_notebook_picture(result: Segmentation) -> None:
    assert np.array_equal(np.asarray(result), result.label_map)
    assert np.array(result, np.uint8).dtype == np.uint8
    assert np.shares_memory(np.asarray(result), result.label_map)
    with Image.open(io.BytesIO(result._repr_png_())) as picture:
        assert (picture.format, picture.size) == ("PNG", result.overlay().size)
    large = Segmentation.from_logits(np.zeros((1500, 3000, 3), np.uint8), ["cat"], np.zeros((1, 3, 6), np.float32))
    with Image.open(io.BytesIO(large._repr_png_())) as picture:
        assert picture.width == 1024
