"""Test every method from training to model file, evaluation and prediction."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from cyclopts import App

from fusioner.cli.evaluate import evaluate as evaluate_command
from fusioner.cli.main import main
from fusioner.cli.train import train as train_command
from fusioner.data.registry import LOADERS, DatasetName, TrainableDataset
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.encoders.registry import build_text_encoder
from fusioner.errors import FusionerError
from fusioner.loading import load
from fusioner.model.baselines import NUM_REFERENCE_WORDS
from fusioner.model.checkpoint import load_model
from fusioner.model.config import TRAINING_FREE, Method
from fusioner.training.calibration import CANDIDATES, reference_words
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import open_split
from fusioner.training.train import train
from fusioner.training.trainer import RunConfig

Tiny = Callable[..., TrainConfig]


def run(root: Path, out: Path, config: TrainConfig, **options: Any) -> Any:
    return train([open_split("pascal", root, 1)], config, RunConfig(out, device="cpu", **options))


def test_softmax_is_not_trained(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match="--image-encoder"):
        run(voc_tree, tmp_path, tiny(method="softmax", steps=3))


@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "softmax"])
def test_every_method_trains_and_predicts(method: Method, voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    result = run(voc_tree, tmp_path, tiny(method=method, steps=3))
    segmenter = load(tmp_path / "best.safetensors", "cpu")
    assert segmenter.card.config.method == method
    assert segmenter.card.image_encoder.startswith("maskclip" if method == "maskclip" else "clip-vit")
    assert len(segmenter.card.training["images"]) > 10  # methods without training choose a threshold on images
    found = segmenter(np.zeros((40, 50, 3), np.uint8), ["cat", "dog"])
    assert found.label_map.shape == (40, 50)
    if method in TRAINING_FREE:
        assert (result.steps, segmenter.card.training["steps"]) == (0, 0)
    if method == "empty":
        assert not found.label_map.any()


@pytest.mark.parametrize("method", ["lseg", "mask-transformer", "prompt-ablated"])
def test_an_interrupted_baseline_resumes_to_the_same_weights(
    method: Method, voc_tree: Path, tiny: Tiny, tmp_path: Path
) -> None:
    config = tiny(method=method, steps=4)
    run(voc_tree, tmp_path / "whole", config)
    from fusioner.training.trainer import Trainer

    update = Trainer._update

    def crash(self: Any, step: int) -> None:
        if step == 2:
            raise KeyError
        update(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_update", crash)
        with pytest.raises(KeyError):
            run(voc_tree, tmp_path / "cut", config, checkpoint_minutes=0)
    run(voc_tree, tmp_path / "cut", config, resume=True)
    whole, resumed = (load_model(tmp_path / name / "last.safetensors")[0].state_dict() for name in ("whole", "cut"))
    assert whole
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_threshold_is_the_best_on_training_images(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(method="cosine")
    result = run(voc_tree, tmp_path / "a", config)
    model, card = load_model(tmp_path / "a" / "best.safetensors")
    assert model.baseline is not None
    assert round(float(model.baseline.zscore_threshold), 1) in CANDIDATES
    assert card.training["train_miou"] == round(result.best, 2) > 0
    words = LabelEmbedder(build_text_encoder(config.model.text_encoder), config.model.templates)(reference_words())
    assert len(words) == NUM_REFERENCE_WORDS
    torch.testing.assert_close(model.baseline.reference_words, words)
    again = run(voc_tree, tmp_path / "b", config.override(batch_size=5))
    assert again.best == pytest.approx(result.best)  # independent of the batch size


def test_encoders_without_text_alignment_are_refused(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    unaligned = tiny(method="cosine", image_encoder="dinov2-s-embedded", text_encoder="minilm-embedded", resolution=28)
    with pytest.raises(FusionerError, match="dinov2-s-embedded and minilm-embedded do not share a space"):
        run(voc_tree, tmp_path / "a", unaligned)
    with pytest.raises(FusionerError, match="which 'dinov2-s-embedded' is not"):
        run(voc_tree, tmp_path / "b", unaligned.override(method="maskclip"))


def test_evaluated_without_any_training(
    voc_tree: Path, clip_folder: Path, tiny: Tiny, tmp_path: Path, capsys: Any
) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    images = sorted((voc_tree / "VOCdevkit" / "VOC2012" / "JPEGImages").glob("2007*"))[:2]
    folder = tmp_path / "own"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for image in images:
        (folder / "images" / image.name).symlink_to(image)
        mask = f"{image.stem}.png"
        (folder / "masks" / mask).symlink_to(voc_tree / "SegmentationClassAug" / mask)
    (folder / "classes.txt").write_text("\n".join(["background", *(f"bus {i}" for i in range(12))]))
    clip = ["--image-encoder", f"clip-vit-b16@{clip_folder}", "--text-encoder", f"clip-text-b16@{clip_folder}"]
    for method, words in (
        ("cosine", clip),
        ("maskclip", clip),
        ("empty", clip),
        ("prompt-ablated", ["--model", str(tmp_path / "best.safetensors"), "--allow-leak"]),
    ):
        out = tmp_path / method
        arguments = ["evaluate", "folder", "--root", str(folder), "--method", method, *words, "--n-resamples", "5"]
        assert main([*arguments, "--out", str(out), "--device", "cpu", "--limit", "2"]) == 0, capsys.readouterr().err
        content = json.loads((out / "metrics.json").read_text())
        assert content["method"] == method
        assert f"- method {method}, encoders " in (out / "report.md").read_text()
        assert ("model" in content) is (method == "prompt-ablated")
    assert json.loads((tmp_path / "empty" / "metrics.json").read_text())["miou"] == 0
    assert main(["evaluate", "folder", "--root", str(folder), "--method", "cosine", "--model", "x"]) == 2
    assert "needs no --model" in capsys.readouterr().err


def test_one_list_of_data_sets() -> None:
    assert set(get_args(DatasetName)) == set(LOADERS)
    assert set(get_args(DatasetName)) - set(get_args(TrainableDataset)) == {"coco-to-pascal", "mosaic4"}
    with pytest.raises(FusionerError, match="no training images"):
        open_split("mosaic4", Path("nowhere"))


def test_a_benchmark_is_trained_on_its_training_split(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    split = open_split("pas20", voc_tree)
    assert len(split.data.items) == 24
    assert train([split], tiny(steps=2), RunConfig(tmp_path, device="cpu")).step == 2


def test_the_page_describes_every_method_and_its_lines_are_right() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "baselines.md").read_text("utf-8")
    assert [name for name in get_args(Method) if f"| `{name}` |" not in page] == []
    lines = page.split("```bash\n")[1].split("```")[0].splitlines()
    for line in lines:
        verb, *words = line.removeprefix("fusioner ").split()
        command = {"train": train_command, "evaluate": evaluate_command}[verb]
        known = {name for flag in App(default_command=command).assemble_argument_collection() for name in flag.names}
        assert {word for word in words if word.startswith("--")} <= known
    assert len(lines) > 2
