"""Test that the training loop learns, can be stopped anywhere, and resumes to the same weights."""

import copy
import itertools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusioner.cli.main import main
from fusioner.encoders.base import PUBLISHED_NORMALISATION
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.errors import FusionerError, first_difference
from fusioner.model.checkpoint import load_model
from fusioner.training import trainer
from fusioner.training.config import LOG, TrainConfig, flatten
from fusioner.training.dataset import open_split
from fusioner.training.resume import read_state
from fusioner.training.train import train
from fusioner.training.trainer import RunConfig, TrainResult

Tiny = Callable[..., TrainConfig]
ALWAYS, NEVER = 0.0, 1e9  # minutes between checkpoints


def run(root: Path, out: Path, config: TrainConfig, minutes: float = NEVER, **options: Any) -> TrainResult:
    split = open_split("pascal", root, options.pop("fold", None))
    return train([split], config, RunConfig(out, device="cpu", checkpoint_minutes=minutes, **options))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path)[0].state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log if "loss" in line]


class CrashError(Exception):
    """A crash in the middle of a run."""


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the update of a step fail, after the checkpoint of that step."""
    from fusioner.training.trainer import Trainer

    update = Trainer._update

    def failing(self: Trainer, current: int) -> None:
        if current == step:
            raise CrashError
        update(self, current)

    monkeypatch.setattr(Trainer, "_update", failing)


def test_the_loss_falls_and_the_masks_improve(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(steps=60, lr=3e-3, decoder_lr=3e-3, warmup=0.1, evaluations=1)
    result = run(voc_tree, tmp_path, config)
    loss = losses(lines(tmp_path))
    assert result.step == result.steps == len(loss) == 60
    assert sum(loss[-5:]) < 0.7 * sum(loss[:5])
    assert {"step", "loss", "train_miou", "lr", "images_per_s"} <= lines(tmp_path)[0].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "resume.pt",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": 0.3, "drop_path": 0.2, "grad_clip": 0.5, "ce_weight": 1.0},
        {"ema": 0.9, "grad_accum": 2, "val_images": 4},
        {"sampling": "pairs", "prompts": 1, "augment_prob": 0.5},
    ],
)
def test_a_crashed_run_resumes_to_the_same_weights(
    voc_tree: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = tiny(**changes)
    run(voc_tree, tmp_path / "whole", config, fold=1)
    with monkeypatch.context() as patch:
        crash_at(4, patch)
        with pytest.raises(CrashError):
            run(voc_tree, tmp_path / "broken", config, ALWAYS, fold=1)
    run(voc_tree, tmp_path / "broken", config, NEVER, resume=True, fold=1)
    for name in ("last.safetensors", "best.safetensors"):
        assert same(weights(tmp_path / "whole" / name), weights(tmp_path / "broken" / name))
    whole, broken = lines(tmp_path / "whole"), lines(tmp_path / "broken")
    assert [line["step"] for line in whole] == [line["step"] for line in broken]
    assert losses(whole) == losses(broken)


def test_ema_weights_are_the_exponential_average(
    voc_tree: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the states of every step; the saved model is the average."""
    from fusioner.training import trainer as loop

    states: list[dict[str, Any]] = []
    monkeypatch.setattr(loop, "write_state", lambda _, state: states.append(copy.deepcopy(state)))
    run(voc_tree, tmp_path, tiny(steps=14, ema=0.6), ALWAYS)
    for before, after in itertools.pairwise(states):
        decay = min(0.6, (1 + before["step"]) / (10 + before["step"]))
        for name, slow in after["ema"].items():
            torch.testing.assert_close(slow, decay * before["ema"][name] + (1 - decay) * after["model"][name])
    assert not same(states[-1]["ema"], states[-1]["model"])
    assert same(weights(tmp_path / "last.safetensors"), states[-1]["ema"])


def test_bf16_follows_fp32(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    for precision in ("32", "bf16"):
        run(voc_tree, tmp_path / precision, tiny(steps=8, precision=precision))
    full, half = (losses(lines(tmp_path / precision)) for precision in ("32", "bf16"))
    assert full != half
    assert half == pytest.approx(full, rel=0.05)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    voc_tree: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {"features": "cached"}
    monkeypatch.setattr(trainer, "BATCHES_AHEAD", 0)
    torch.manual_seed(1)
    run(voc_tree, tmp_path / "a", tiny(**cached), cache=tmp_path / "cache")
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))  # the global generator is unchanged
    monkeypatch.setattr(trainer, "BATCHES_AHEAD", 3)
    run(voc_tree, tmp_path / "b", tiny(**cached), cache=tmp_path / "cache")
    run(voc_tree, tmp_path / "c", tiny(**cached, seed=1), cache=tmp_path / "cache")
    a, b, c = (weights(tmp_path / name / "last.safetensors") for name in "abc")
    assert same(a, b)
    assert not same(a, c)


def test_gradient_accumulation_equals_the_whole_batch(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(voc_tree, tmp_path / "whole", tiny(ce_weight=1.0))
    run(voc_tree, tmp_path / "pieces", tiny(ce_weight=1.0, grad_accum=4))
    whole, pieces = lines(tmp_path / "whole"), lines(tmp_path / "pieces")
    assert losses(whole) == pytest.approx(losses(pieces), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [({"lr": 2e-3}, "lr"), ({"seed": 5}, "seed"), ({"layers": 2}, "layers"), ({"steps": 9}, "steps")],
)
def test_resuming_with_other_settings_is_refused(
    voc_tree: Path, tiny: Tiny, tmp_path: Path, changes: dict[str, Any], flag: str
) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    with pytest.raises(FusionerError, match=rf"cannot resume .*: it was begun with other settings: {flag}") as caught:
        run(voc_tree, tmp_path, tiny(**({"steps": 1} | changes)), resume=True)
    assert str(caught.value).count("\n") == 0


def test_a_run_can_be_resumed_by_a_version_with_further_settings(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    settings = read_state(tmp_path, torch.device("cpu"))["identity"]["settings"]
    assert settings == tiny(steps=1).changes()
    assert settings.keys() < flatten(tiny().to_dict()).keys()  # default settings are not compared
    assert run(voc_tree, tmp_path, tiny(steps=1), resume=True).step == 1
    assert not first_difference({"a": {"lr": 1}}, {"a": {"lr": 1}})
    assert first_difference({"a": {}}, {"a": {"lr": 1}}) == "lr (the default then, 1 now)"


def test_resuming_with_other_data_is_refused(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    with pytest.raises(FusionerError, match="begun with other settings: data"):
        run(voc_tree, tmp_path, tiny(steps=1), resume=True, fold=0)


def test_a_folder_with_a_run_is_not_overwritten(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    with pytest.raises(FusionerError, match="--resume"):
        run(voc_tree, tmp_path, tiny(steps=1))


def test_a_damaged_state_is_named(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    run(voc_tree, tmp_path, tiny(steps=1))
    state = tmp_path / "resume.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(FusionerError, match=r"resume\.pt is corrupt"):
        run(voc_tree, tmp_path, tiny(steps=1), resume=True)


def test_a_diverging_run_leaves_the_last_finite_checkpoint(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=r"the loss is (nan|inf) at step \d+ .*resume\.pt"):
        run(voc_tree, tmp_path, tiny(lr=1e30, decoder_lr=1e30), ALWAYS)
    state = read_state(tmp_path, torch.device("cpu"))
    assert state["step"] == 0
    for path in (tmp_path / "last.safetensors",):
        assert all(tensor.isfinite().all() and tensor.abs().max() < 100 for tensor in weights(path).values())


def test_no_space_left(voc_tree: Path, tiny: Tiny, full_disk: Path) -> None:
    with pytest.raises(FusionerError, match="no space left"):
        run(voc_tree, full_disk / "run", tiny(width=256, heads=8, steps=1))
    assert not list(full_disk.rglob("*.pt"))


def test_the_card_records_the_training(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(steps=2, val_images=2)
    run(voc_tree, tmp_path, config, fold=0, preset="small", command="fusioner train pascal")
    model, card = load_model(tmp_path / "best.safetensors")
    training = card.training
    assert (training["dataset"], training["fold"], training["steps"], training["preset"]) == ("pascal", 0, 2, "small")
    assert training["root"] == voc_tree.name
    assert "aeroplane" not in training["classes"]
    assert "cat" in training["classes"]
    assert training["versions"].keys() == {"fusioner", "torch", "transformers"}
    encoder = build_image_encoder(config.model.image_encoder)
    encoder.mean, encoder.std = PUBLISHED_NORMALISATION["pascal"]
    assert training["encoders"]["image"] == encoder.fingerprint()
    assert (card.mean, card.std) == PUBLISHED_NORMALISATION["pascal"]
    assert training["held_out"] == 2
    assert len(training["images"]) == 16  # those that show a cat or a dog; held-out images count as seen
    assert card.image_encoder == config.model.image_encoder
    assert model.config.image_dim == 12


def test_encoders_are_frozen(voc_tree: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusioner.training import train as module

    stored: list[Any] = []
    build = module.build_encoders

    def keeping(*arguments: Any) -> Any:
        stored.extend(build(*arguments))
        return stored

    monkeypatch.setattr(module, "build_encoders", keeping)
    config = tiny()
    run(voc_tree, tmp_path, config)
    fresh = (build_image_encoder(config.model.image_encoder), build_text_encoder(config.model.text_encoder))
    for used, untouched in zip(stored, fresh, strict=True):
        assert isinstance(untouched, nn.Module)
        assert same(used.state_dict(), untouched.state_dict())
        assert not any(module.training for module in used.modules())
        assert all(p.grad is None and not p.requires_grad for p in used.parameters())


def test_only_the_val_split_is_never_opened(voc_tree: Path, tiny: Tiny, tmp_path: Path) -> None:
    """The only val image is invalid and would end the run with an error."""
    assert run(voc_tree, tmp_path, tiny(steps=8)).step == 8


@pytest.mark.slow
def test_killed_and_interrupted_runs_resume_to_the_same_weights(
    train_words: Callable[..., list[str]],
    pause_before: Callable[..., dict[str, str]],
    spawn: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Compare a run that is killed with -9 and interrupted with Ctrl-C to an undisturbed one."""
    out = tmp_path / "run"
    words = train_words(out, "--checkpoint-minutes", "0", "--resume", steps=16)
    command = [sys.executable, "-m", "fusioner", *words]
    killed = spawn(command, OMP_NUM_THREADS="1", **pause_before(7))
    killed.wait_for_step(str(out / LOG), 4)
    killed.kill_group()
    done = read_state(out, torch.device("cpu"))["step"]
    assert 3 <= done <= 7
    interrupted = spawn(command, OMP_NUM_THREADS="1", **pause_before(11))
    interrupted.wait_for_step(str(out / LOG), done + 2)
    interrupted.send_signal(signal.SIGINT)
    output, err = interrupted.finish()
    assert interrupted.returncode == 130, err
    assert f"continue with --resume --out {out}" in output
    assert f"resuming {out} at step {done}" in err
    assert done < read_state(out, torch.device("cpu"))["step"] <= 12
    assert main(words) == 0
    assert main(train_words(tmp_path / "alone", steps=16)) == 0
    for name in ("last.safetensors", "best.safetensors"):
        assert same(weights(out / name), weights(tmp_path / "alone" / name))
