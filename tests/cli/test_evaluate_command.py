"""`fusioner evaluate` from the folder to the report, with the embedded encoders and an untrained network."""

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.cli.evaluate import evaluate, evaluation_split
from fusioner.data.base import SegmentationData
from fusioner.data.classes import PASCAL_CLASSES
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.evaluation.train_test_overlap import refuse_trained_images, trained_classes
from fusioner.model.checkpoint import ModelCard, load_model, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = FusionerConfig(image_dim=384, text_dim=384, width=32, layers=1, heads=2, decoder_widths=(16, 16))
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, Fusioner(config), ModelCard(config, "dinov2-s-embedded", "minilm-embedded", resolution=112))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        mask = np.zeros((50, 60), np.uint8)
        mask[10:40, 10:30] = 1 + i % 2
        Image.fromarray(rng.integers(0, 255, (50, 60, 3)).astype(np.uint8)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("background\ncat\nsofa\n")
    (root / "val.txt").write_text("0\n1\n")
    return root


def test_a_folder_is_evaluated_and_reported(model: Path, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    evaluate(
        "folder",
        root=own,
        model=model,
        out=out,
        options=EvaluationOptions(n_resamples=20),
        cache=tmp_path / "cache",
        device="cpu",
    )
    assert any(path.suffix == ".safetensors" for path in (tmp_path / "cache").rglob("*"))
    content = json.loads((out / "metrics.json").read_text())
    assert content["images"] == 2
    assert set(content["per_class"]) == {"cat", "sofa"}
    assert 0 <= content["miou"] <= 100
    assert len(content["model"]["sha256"]) == 64
    assert content["image_encoder"]["name"] == "dinov2-s-embedded"
    assert torch.__version__.startswith(content["versions"]["torch"])  # without the build, such as +cpu
    printed = capsys.readouterr()
    assert "mIoU" in printed.out
    assert "report.html" in printed.out.replace("\n", "")


def test_threshold_model_is_that_of_the_card(model: Path, own: Path, tmp_path: Path):
    network, card = load_model(model)
    card.threshold = 0.0  # no pixel is background
    save_model(tmp_path / "greedy.safetensors", network, card)
    thresholds: list[tuple[float | Literal["model"], float]] = [(1.0, 1.0), ("model", 0.0)]
    for threshold, level in thresholds:
        out, options = tmp_path / str(threshold), EvaluationOptions(threshold=threshold, n_resamples=2)
        evaluate("folder", root=own, model=tmp_path / "greedy.safetensors", out=out, options=options, device="cpu")
        content = json.loads((out / "metrics.json").read_text())
        assert content["settings"]["threshold"] == level
        assert (content["miou"] > 0) is (threshold == "model")


def test_the_guided_filter_follows_the_card_by_default(model: Path, own: Path, tmp_path: Path):
    network, card = load_model(model)
    card.guided_filter = True
    save_model(tmp_path / "refining.safetensors", network, card)
    cases = {"default": {}, "off": {"guided_filter": False}, "slide": {"mode": "slide"}}
    found = {}
    for name, options in cases.items():
        file, out = tmp_path / "refining.safetensors", tmp_path / name
        evaluate(
            "folder", root=own, model=file, out=out, options=EvaluationOptions(n_resamples=2), device="cpu", **options
        )
        found[name] = json.loads((out / "metrics.json").read_text())["guided_filter"]
    assert found == {"default": True, "off": False, "slide": False}


def test_impossible_evaluations_are_refused_before_loading(own: Path, tmp_path: Path):
    nowhere = tmp_path / "no_such_model"
    with pytest.raises(FusionerError, match="JPEGImages"):
        evaluate("pascal", root=own, model=nowhere, out=tmp_path)
    with pytest.raises(FusionerError, match="at least one image"):
        evaluate("folder", root=own, model=nowhere, out=tmp_path, options=EvaluationOptions(limit=0))
    with pytest.raises(FusionerError, match="no_such_model"):
        evaluate("folder", root=own, model=nowhere, out=tmp_path / "out", device="cpu")


def test_the_split_evaluated_on_by_default(own: Path):
    assert evaluation_split("folder", own, None) == "val"
    assert evaluation_split("pascal", own, None) == "val"
    assert evaluation_split("fss1000", own, None) == "test"
    assert evaluation_split("folder", own, "all") is None
    (own / "val.txt").unlink()
    assert evaluation_split("folder", own, None) is None


def test_a_model_trained_on_the_evaluated_images_is_refused(model: Path, own: Path, tmp_path: Path):
    network, card = load_model(model)
    digest = hashlib.sha256((own / "images" / "1.png").read_bytes()).hexdigest()
    card.training = {"images": ["0" * 12, digest[:12]]}
    save_model(tmp_path / "leaky.safetensors", network, card)
    with pytest.raises(FusionerError, match=r"trained on 1 of the 2 images .*\(1\).*--allow-leak"):
        evaluate("folder", root=own, model=tmp_path / "leaky.safetensors", out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "metrics.json").exists()
    items = open_dataset("folder", own).items
    assert "trained on 1 of the 3" in refuse_trained_images(card.training, items, allowed=True)[0]
    assert refuse_trained_images({}, items) == []


def test_trained_classes_are_not_reported_as_unseen():
    data = SegmentationData(
        "pascal", PASCAL_CLASSES, [], prompts=tuple(n.replace("table", " table") for n in PASCAL_CLASSES)
    )
    training = {"classes": ["Dining table", "cat"]}
    assert trained_classes(training, data, range(11, 16)) == [
        "1 of the 5 classes called unseen were in the training: diningtable"
    ]
    assert trained_classes(training, data, range(1, 6)) == []
    assert trained_classes({}, data, range(1, 21)) == []
