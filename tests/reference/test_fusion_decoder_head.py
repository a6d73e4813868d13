"""The paper's network against the official implementation's tensors."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fusioner.model.checkpoint import load_state
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.head import cosine_logits


@pytest.fixture(scope="module")
def golden(reference: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(reference / "fusion_decoder_head.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def model(golden: tuple[dict[str, Tensor], dict[str, str]]) -> Fusioner:
    tensors, sizes = golden
    state = {name.removeprefix("state."): t for name, t in tensors.items() if name.startswith("state.")}
    width = int(sizes["width"])
    stages = sum(name.startswith("decoder.") and name.endswith(".weight") for name in state) - 1
    config = FusionerConfig(
        image_dim=tensors["input.visual"].shape[-1],
        text_dim=tensors["input.text"].shape[-1],
        width=width,
        layers=int(sizes["layers"]),
        heads=int(sizes["heads"]),
        temperature=float(sizes["temperature"]),
        decoder_widths=(width,) * stages,
    )
    model = Fusioner(config).eval()
    load_state(model, state, "golden")
    return model


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@torch.no_grad()
def test_every_stage_is_reproduced(model: Fusioner, golden: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    tensors, sizes = golden
    grid, target = int(sizes["grid"]), int(sizes["target_size"])
    patches, classes = model.fusion(tensors["input.visual"], tensors["input.text"])
    assert close(patches, tensors["output.patches"])
    assert close(classes, tensors["output.classes"])
    decoded = model.decoder(tensors["output.patches"].transpose(1, 2).unflatten(2, (grid, grid)), (target, target))
    assert close(decoded, tensors["output.decoded"])
    logits = cosine_logits(tensors["output.decoded"], tensors["output.classes"], model.config.temperature)
    assert close(logits, tensors["output.logits"])


@torch.no_grad()
def test_the_whole_way_is_reproduced(model: Fusioner, golden: tuple[dict[str, Tensor], dict[str, str]]) -> None:
    tensors, sizes = golden
    grid, target = int(sizes["grid"]), int(sizes["target_size"])
    tokens = tensors["input.visual"].transpose(1, 2).unflatten(2, (grid, grid))
    assert close(model(tokens, tensors["input.text"], (target, target)), tensors["output.logits"])
