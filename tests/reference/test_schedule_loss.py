"""Compare loss and schedules with the numbers of the official implementation."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fusioner.training.losses import masked_bce
from fusioner.training.optim import cosine, warmup_cosine

Golden = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    with safe_open(reference / "schedule_loss.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def ends(text: str) -> tuple[float, float]:
    """Parse `1e-3->2e-6` to (1e-3, 2e-6)."""
    start, end = text.split("->")
    return float(start), float(end)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours.double() - theirs.double()).abs().max() <= 1e-5 * theirs.double().abs().max())


def test_masked_bce(golden: Golden) -> None:
    tensors, _ = golden
    loss = masked_bce(tensors["loss.logits"], tensors["loss.target"], tensors["loss.ignore"])
    assert close(loss, tensors["loss.output"])


def test_learning_rate(golden: Golden) -> None:
    tensors, sizes = golden
    per_epoch = int(sizes["iters_per_epoch"])
    steps, warmup = int(sizes["epochs"]) * per_epoch, int(sizes["warmup_epochs"]) * per_epoch
    peak, end = ends(sizes["lr"])
    ours = torch.tensor([warmup_cosine(step, steps, peak, end, warmup) for step in range(steps)], dtype=torch.float64)
    assert ours.shape == tensors["lr"].shape
    assert close(ours, tensors["lr"])


def test_weight_decay(golden: Golden) -> None:
    tensors, sizes = golden
    steps = int(sizes["epochs"]) * int(sizes["iters_per_epoch"])
    start, end = ends(sizes["wd"])
    ours = torch.tensor([cosine(step, steps, start, end) for step in range(steps)], dtype=torch.float64)
    assert ours.shape == tensors["wd"].shape
    assert close(ours, tensors["wd"])
