"""The network and the image encoder of the golden tensors."""

from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

from fusioner.encoders.image import ClipVision, clip_vision_from_openai
from fusioner.model.checkpoint import load_state
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

Golden = tuple[dict[str, Tensor], dict[str, str]]


def read_golden(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state."): tensor for name, tensor in tensors.items() if name.startswith("state.")}


@pytest.fixture(scope="session")
def golden_windows(reference: Path) -> Golden:
    return read_golden(reference / "sliding_window.safetensors")


@pytest.fixture(scope="session")
def golden_fusion(reference: Path) -> Golden:
    return read_golden(reference / "fusion_decoder_head.safetensors")


@pytest.fixture(scope="session")
def golden_network(golden_fusion: Golden) -> Fusioner:
    tensors, sizes = golden_fusion
    state, width = state_of(tensors), int(sizes["width"])
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


@pytest.fixture(scope="session")
def golden_clip(reference: Path) -> ClipVision:
    """Return an encoder for images that are already normalised."""
    tensors, sizes = read_golden(reference / "clip_vit_dense.safetensors")
    encoder = clip_vision_from_openai(state_of(tensors), heads=int(sizes["heads"]))
    encoder.mean, encoder.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return encoder
