"""Evaluate pairs of encoders without training on the benchmarks, by the published protocols."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fusioner import torch_network
from fusioner.cli.main import main
from fusioner.data.base import SegmentationData
from fusioner.data.classes import read_names
from fusioner.data.registry import open_dataset
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.evaluation.training_free import BENCHMARKS, PROTOCOLS, benchmark_protocol, load_pair, with_published_names
from fusioner.labels import SoftmaxNames
from fusioner.postprocess import decide_logits

PAIR = ("sclip-vit-b16@{clip}", "clip-text-b16@{clip}")
PASCAL = ("VOCdevkit/VOC2012/JPEGImages/{}.jpg", "VOCdevkit/VOC2012/SegmentationClass/{}.png")
CONTEXT = ("VOCdevkit/VOC2010/JPEGImages/{}.jpg", "VOCdevkit/VOC2010/SegmentationClassContext/{}.png")
STUFF = ("images/val2017/{}.jpg", "annotations/val2017/{}.png")
LAYOUTS = {
    "pas20": PASCAL,
    "voc21": PASCAL,
    "context59": CONTEXT,
    "context60": CONTEXT,
    "ade150": ("ADEChallengeData2016/images/validation/{}.jpg", "ADEChallengeData2016/annotations/validation/{}.png"),
    "cityscapes": ("leftImg8bit/val/ulm/{}_leftImg8bit.png", "gtFine/val/ulm/{}_gtFine_labelIds.png"),
    "coco-stuff": STUFF,
    "coco-object": STUFF,
}


@pytest.fixture(scope="module")
def make_tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return `make(name)`: write two images of a benchmark in its published folders, each with two classes."""

    def make(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(0)
        for image in ("2007_000033", "2007_000042"):  # listed in PASCAL's val
            mask = np.full((40, 60), 7, np.uint8)
            mask[:, 30:] = 11
            picture, target = (root / part.format(image) for part in LAYOUTS[name])
            for path in (picture, target):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
            Image.fromarray(mask if "coco" not in name else mask - 1).save(target)
        base = root / "VOCdevkit"
        for lists in (base / "VOC2012/ImageSets/Segmentation", base / "VOC2010/ImageSets/SegmentationContext"):
            lists.mkdir(parents=True)
            (lists / "val.txt").write_text("2007_000033\n2007_000042\n")
        return root

    return make


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_prints_its_row(
    name: str,
    make_tree: Any,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Use all 80 templates for one benchmark only, because encoding them takes most of the time."""
    if name != "pas20":
        (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
        monkeypatch.setattr(torch_network, "IMAGENET", str(tmp_path / "templates.txt"))
    image, text = (part.format(clip=clip_folder) for part in PAIR)
    words = ["evaluate", name, "--root", make_tree(name), "--image-encoder", image, "--text-encoder", text]
    assert main([*map(str, words), "--out", str(tmp_path), "--device", "cpu", "--n-resamples", "10"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {image} | {text} | {name} | ")]
    assert len(rows) == 1
    protocol = PROTOCOLS["sclip"].get(name, PROTOCOLS["sclip"][""])
    assert rows[0].endswith(f"| {protocol} |")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert f"| {metrics['miou']:.1f} |" in rows[0]
    assert 0 <= metrics["miou"] < 100
    assert metrics["images"] == 2
    assert f"protocol {protocol}" in metrics["notes"]


def empty(name: str, classes: tuple[str, ...], background: bool = False) -> SegmentationData:
    return SegmentationData(name, ("background", *classes), [], ignore_unlabeled=not background)


def test_protocols_of_the_public_configurations() -> None:
    voc, ade = empty("voc21", (), background=True), empty("ade150", ())
    assert str(benchmark_protocol("sclip-vit-b16", 224, voc)) == (
        "SCLIP's: short side 336 px, windows of 224 px every 112 px, softmax over cosines x 65, background 26 names or "
        "probability below 0.1, names per class several for persons and monitors, areas up to 10% removed"
    )
    assert str(benchmark_protocol("naclip-vit-b16", 224, ade)).endswith(", 10 iterations of PAMR")
    assert str(benchmark_protocol("naclip-vit-b16@/x", 224, voc)).startswith(
        "NACLIP's: short side 336 px, whole image, "
    )
    assert "'background' or probability below 0.5" in str(benchmark_protocol("clearclip-vit-b16", 224, voc))
    proxy = benchmark_protocol("proxyclip:clip-vit-b16+dino-vit-b16", 224, ade)
    assert (proxy.short_side, proxy.window, proxy.stride, proxy.background) == (448, 336, 112, ())
    other = benchmark_protocol("tipsv2-b", 448, empty("cityscapes", ()))
    assert (other.short_side, other.window, other.stride) == (1120, 448, 224)
    assert benchmark_protocol("maskclip-vit-b16", 224, ade) == PROTOCOLS["sclip"][""]
    folder = benchmark_protocol("sclip-vit-b16", 224, empty("folder", (), background=True))
    assert folder == PROTOCOLS["sclip"]["voc21"]
    assert benchmark_protocol("sclip-vit-b16", 224, empty("folder", ())).threshold == 0


def test_names_as_the_papers_spell_them() -> None:
    voc = with_published_names(empty("voc21", read_names("pascal")[0][1:]), synonyms=True).prompts
    assert (voc[4], voc[11], voc[16]) == ("ship", "table", "pottedplant")
    assert voc[15].split(", ")[:2] == ["person", "person in shirt"]
    assert voc[20] == "television monitor, tv monitor, monitor, television, screen"
    plain = with_published_names(empty("pas20", read_names("pascal")[0][1:]), synonyms=False).prompts
    assert (plain[15], plain[20]) == ("person", "tvmonitor")
    stuff = read_names("stuff171")[0]
    assert with_published_names(empty("coco-stuff", stuff), synonyms=True).prompts[1] == "person"
    assert with_published_names(empty("coco-stuff", stuff), synonyms=True).prompts[10] == "trafficlight"
    things = with_published_names(empty("coco-object", stuff[:80], background=True), synonyms=True).prompts
    assert things[10] == "traffic light"
    assert things[1].endswith("person in jacket, body")
    folder = empty("folder", ("red car",))
    assert with_published_names(folder, synonyms=True) is folder


def test_the_most_likely_synonym_counts() -> None:
    names = SoftmaxNames(["sky"])
    labels = ["cat", "person, man"]
    assert names.expand(labels) == ["cat", "person", "man", "sky"]
    scores = np.log(np.array([[0.2, 0.1], [0.1, 0.1], [0.3, 0.1], [0.4, 0.7]], np.float32))[:, :, None]
    logits = names.reduce(scores, labels)
    probabilities = 1 / (1 + np.exp(-logits[:, :, 0]))
    np.testing.assert_allclose(probabilities[:, 0], [0, 0], atol=1e-6)  # sky is more probable than each name
    scores = np.log(np.array([[0.2], [0.1], [0.6], [0.1]], np.float32))[:, :, None]
    np.testing.assert_allclose(1 / (1 + np.exp(-names.reduce(scores, labels)[:, 0, 0])), [0.2, 0.6], rtol=1e-5)


def test_small_areas_and_refinement(clip_folder: Path) -> None:
    scores = np.zeros((3, 1, 40), np.float32)  # cat: 30 px, dog: 3 px, sky: 7 px
    scores[0, 0, :30] = scores[1, 0, 30:33] = scores[2, 0, 33:] = 5
    scores[0, 0, 30:33] = 1
    unfiltered, filtered = (SoftmaxNames(["sky"], area).reduce(scores.copy(), ["cat", "dog"]) for area in (0, 0.1))
    assert [(logits[:, 0, 31] > 0).tolist() for logits in (unfiltered, filtered)] == [[False, True], [False, False]]
    assert filtered[1].max() < -10
    image, text = (part.format(clip=clip_folder).replace("sclip", "naclip") for part in PAIR)
    segmenter, protocol = load_pair(image, text, "cpu", empty("pas20", ()))
    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    refined = segmenter(rgb, ["cat", "dog"])
    plain = replace(segmenter.card, pamr=0)
    segmenter.card = plain
    assert protocol.pamr == 10
    assert np.abs(refined.probabilities - segmenter(rgb, ["cat", "dog"]).probabilities).max() > 1e-3


def published_prediction(segmenter: Any, rgb: np.ndarray, labels: list[str], protocol: Any) -> torch.Tensor:
    """Average cosines over windows, apply softmax over names, take each class's best name, and threshold."""
    names = [(i, name) for i, label in enumerate(labels, start=1) for name in label.split(", ")]
    names += [(0, name) for name in protocol.background]
    words = segmenter.network.embed([name for _, name in names])
    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255
    height, width = rgb.shape[:2]
    total, count = torch.zeros(len(names), height, width), torch.zeros(height, width)
    side, step = protocol.window, protocol.stride
    for top in range(0, max(height - side + step - 1, 0) // step * step + 1, step):
        for left in range(0, max(width - side + step - 1, 0) // step * step + 1, step):
            y, x = max(min(top + side, height) - side, 0), max(min(left + side, width) - side, 0)
            tokens = segmenter.image_encoder(pixels[..., y : y + side, x : x + side])
            cosines = torch.einsum("bdhw,nd->bnhw", tokens, words)
            area = np.s_[..., y : y + side, x : x + side]
            total[area] += F.interpolate(cosines, (side, side), mode="bilinear", align_corners=False)[0]
            count[area[1:]] += 1
    probabilities = (total / count * protocol.scale).softmax(0)
    of_class = torch.stack([probabilities[[i == k for i, _ in names]].amax(0) for k in range(len(labels) + 1)])
    areas = of_class.argmax(0).flatten().bincount(minlength=len(of_class))[1:]
    of_class[1:][areas <= protocol.min_area * areas.sum()] = 0
    best, winner = of_class.max(0)
    return winner.masked_fill(best < protocol.threshold, 0)


@torch.no_grad()
def test_a_prediction_equals_that_of_the_published_method(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = (part.format(clip=clip_folder) for part in PAIR)
    labels = ["cat, dog", "bird", "horse, cow, train", "bus"]
    custom = replace(PROTOCOLS["sclip"]["voc21"], background=("car", "sheep"), threshold=0.15)
    monkeypatch.setitem(PROTOCOLS["sclip"], "voc21", custom)
    segmenter, protocol = load_pair(image, text, "cpu", empty("voc21", (), background=True))
    rgb = np.random.default_rng(0).integers(0, 255, (42, 50, 3)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    tokens = segmenter.image_encoder(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255)[0].flatten(1)  # (d, n)
    drawn = F.normalize(tokens - tokens.mean(1, keepdim=True), dim=0)[:, ::200]  # text vectors from patches
    words = dict(zip(["cat", "dog", "bird", "horse", "cow", "train", "bus", "car", "sheep"], drawn.T, strict=False))
    monkeypatch.setattr(segmenter.network, "embed", lambda names: torch.stack([words[name] for name in names]))
    expected = published_prediction(segmenter, rgb, labels, protocol)
    predictor = SegmenterPredictor(segmenter, "slide")
    logits = np.asarray(predictor.logits(predictor.encode(rgb, None), labels))
    found = torch.from_numpy(decide_logits(logits, (336, 400), segmenter.card.threshold, True)[0])
    assert len(expected.unique()) >= 3, expected.unique()
    assert (found == expected).float().mean() > 0.999


def test_a_model_and_a_pair_exclude_each_other(
    make_tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["evaluate", "ade150", "--root", str(make_tree("ade150")), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*start, "--model", "m.safetensors", "--image-encoder", "clip-vit-b16"]) == 2
    assert "a model names its own encoders" in capsys.readouterr().err
    assert main([*start, "--text-encoder", "clip-text-b16"]) == 2
    assert main([*start, "--image-encoder", "dinov2-s-embedded"]) == 2
    assert "does not share a space with a text encoder" in capsys.readouterr().err
    assert main([*start, "--image-encoder", "clip-vit-b16", "--text-encoder", "clip-text-b32"]) == 2


def test_pascal_val_is_read_as_published(shared: Path, clip_folder: Path) -> None:
    data = open_dataset("voc21", shared / "data" / "pascal", "val")
    image, text = (part.format(clip=clip_folder) for part in PAIR)
    segmenter, protocol = load_pair(image, text, "cpu", data)
    assert segmenter.card.background == protocol.background
    data = with_published_names(data, protocol.synonyms)
    rgb, mask = data.read(data.items[0])
    logits = segmenter.logits(segmenter.encode(rgb, mode="slide"), list(data.prompts[1:]))
    assert logits.shape == (20, *mask.shape)
