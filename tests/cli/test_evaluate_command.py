"""`fusioner evaluate` from the folder to the report, with the embedded encoders and a network nobody trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.cli.evaluate import evaluate, evaluation_split, leaks
from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import ModelCard, save_model
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
    evaluate("folder", root=own, model=model, out=out, bootstrap=20, device="cpu")
    content = json.loads((out / "metrics.json").read_text())
    assert content["images"] == 2
    assert set(content["per_class"]) == {"cat", "sofa"}
    assert 0 <= content["miou"] <= 100
    assert len(content["model"]["sha256"]) == 64
    assert content["image_encoder"]["name"] == "dinov2-s-embedded"
    assert content["versions"]["torch"] == torch.__version__
    printed = capsys.readouterr()
    assert "mIoU" in printed.out
    assert "report.html" in printed.out.replace("\n", "")


def test_what_cannot_be_evaluated_is_refused_before_the_model_is_loaded(own: Path, tmp_path: Path):
    nowhere = tmp_path / "no_such_model"
    with pytest.raises(FusionerError, match="JPEGImages"):
        evaluate("pascal", root=own, model=nowhere, out=tmp_path)
    with pytest.raises(FusionerError, match="at least one image"):
        evaluate("folder", root=own, model=nowhere, out=tmp_path, limit=0)
    with pytest.raises(FusionerError, match="no_such_model"):
        evaluate("folder", root=own, model=nowhere, out=tmp_path / "out", device="cpu")


def test_the_split_evaluated_on_by_default(own: Path):
    assert evaluation_split("folder", own, None) == "val"
    assert evaluation_split("pascal", own, None) == "val"
    assert evaluation_split("fss1000", own, None) == "test"
    assert evaluation_split("folder", own, "all") is None
    (own / "val.txt").unlink()
    assert evaluation_split("folder", own, None) is None


def test_a_model_of_another_fold_is_called_out():
    pascal = SegmentationData("pascal", ("background",), [])
    assert leaks({"dataset": "pascal", "fold": 2}, pascal, (2,)) == []
    assert leaks({}, pascal, (0,)) == []
    assert leaks({"dataset": "coco", "fold": 2}, pascal, (0,)) == []
    assert "trained on fold 2" in leaks({"dataset": "pascal", "fold": 2}, pascal, (0, 2))[0]
    assert "fold 0" in leaks({"dataset": "pascal", "fold": 2}, pascal, (0, 2))[0]
