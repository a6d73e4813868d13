"""Compare CLIP's dense patch tokens with the golden tensors of the official implementation."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fusioner.encoders.image import ClipVision, clip_vision_from_openai
from fusioner.encoders.open_clip import remap_openai_visual


@pytest.fixture(scope="module")
def golden(reference: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(reference / "clip_vit_dense.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.fixture(scope="module")
def encoder(golden: tuple[dict[str, str], dict[str, Tensor]]) -> ClipVision:
    metadata, tensors = golden
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    encoder = clip_vision_from_openai(state, heads=int(metadata["heads"]))
    encoder.mean, encoder.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the golden image is normalised already
    return encoder


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_sizes_are_read_off_the_weights(encoder: ClipVision, golden: tuple[dict[str, str], dict[str, Tensor]]) -> None:
    metadata, _ = golden
    config = encoder.model.config
    assert encoder.stride == int(metadata["patch"])
    assert config.hidden_size == int(metadata["width"])
    assert config.num_hidden_layers == int(metadata["layers"])
    assert config.hidden_act == metadata["activation"]


def test_patch_tokens(encoder: ClipVision, golden: tuple[dict[str, str], dict[str, Tensor]]) -> None:
    _, tensors = golden
    with torch.no_grad():
        tokens = encoder.tokens(tensors["input.image"])
    assert_close(tokens.flatten(2).transpose(1, 2), tensors["output.patch_tokens"])


def test_unit_patch_tokens(encoder: ClipVision, golden: tuple[dict[str, str], dict[str, Tensor]]) -> None:
    _, tensors = golden
    assert_close(encoder(tensors["input.image"]).flatten(2).transpose(1, 2), tensors["output.patch_tokens_unit"])


def test_remap_covers_the_model_exactly(encoder: ClipVision, golden: tuple[dict[str, str], dict[str, Tensor]]) -> None:
    _, tensors = golden
    state = {key.replace("state.", "visual."): value for key, value in tensors.items() if key.startswith("state.")}
    assert set(remap_openai_visual(state)) == set(encoder.model.state_dict())
