"""Compare the tokens of CLIP's ResNets with CLIP's attention pool, on a random network (needs timm)."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fusioner.encoders.registry import build_image_encoder
from fusioner.errors import FusionerError


@pytest.fixture(scope="module")
def timm() -> Any:
    try:
        return importlib.import_module("timm")
    except Exception as error:
        pytest.skip(f"the extra timm does not import here ({error}): pip install fusioner[timm]")


@pytest.fixture(scope="module")
def network(timm: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("resnet50_clip.openai", pretrained=False).eval()


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rn50")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "resnet50_clip"}')
    return folder


@torch.no_grad()
def test_tokens_are_the_pools_value_and_output_projections(network: Any, folder: Path) -> None:
    encoder = build_image_encoder(f"clip-rn50@{folder}")
    assert (encoder.dim, encoder.stride, encoder.name) == (1024, 32, f"clip-rn50@{folder}")
    images = torch.rand(2, 3, 64, 160, generator=torch.Generator().manual_seed(1))
    tokens = encoder(images)
    assert tokens.shape == (2, 1024, 2, 5)
    pixels = (images - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(1, 3, 1, 1)
    features = network.forward_features(pixels)  # (2, 2048, 2, 5)
    for row, column in [(0, 0), (1, 4), (0, 3)]:
        token = network.head.proj(network.head.v(features[:, :, row, column]))
        torch.testing.assert_close(tokens[:, :, row, column], F.normalize(token, dim=1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_position_alone_is_clips_own_image_vector(network: Any, folder: Path) -> None:
    """On a map of one position without embedding, attention pooling and token must agree."""
    encoder = build_image_encoder(f"clip-rn50@{folder}")
    network.head.pos_embed.zero_()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    pixels = (images - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder(images)[:, :, 0, 0], F.normalize(network(pixels), dim=1), rtol=1e-4, atol=1e-5)


def test_batch_norm_stays_frozen(folder: Path) -> None:
    encoder: Any = build_image_encoder(f"clip-rn50@{folder}")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.nn.Sequential(encoder).train()(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


def test_weights_of_another_network(timm: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=r"does not hold resnet101_clip\.openai"):
        build_image_encoder(f"clip-rn101@{folder}")
    with pytest.raises(FusionerError, match=r"has no weights \(model\.safetensors"):
        build_image_encoder(f"clip-rn50@{tmp_path}")


def test_without_timm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # simulates a missing package
    with pytest.raises(FusionerError, match=r"clip-rn50@\S+ needs timm.*pip install fusioner\[timm\]"):
        build_image_encoder(f"clip-rn50@{tmp_path}")


@torch.no_grad()
def test_openais_keys_give_the_same_tokens(network: Any, folder: Path, tmp_path: Path) -> None:
    """Use the keys of `open_clip_model.safetensors` in timm's repositories, text encoder included."""
    state = {f"visual.{_openai_key(key)}": value.contiguous() for key, value in network.state_dict().items()}
    state["token_embedding.weight"] = torch.zeros(3, 4)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50_clip"}')
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        build_image_encoder(f"clip-rn50@{tmp_path}")(images), build_image_encoder(f"clip-rn50@{folder}")(images)
    )


def _openai_key(key: str) -> str:
    """Map timm's key of a CLIP ResNet to OpenAI's."""
    if key.startswith("head."):
        names = {"head.q.": "q_proj.", "head.k.": "k_proj.", "head.v.": "v_proj.", "head.proj.": "c_proj."}
        prefix = next((name for name in names if key.startswith(name)), "head.pos_embed")
        return "attnpool." + (names[prefix] + key.removeprefix(prefix) if prefix in names else "positional_embedding")
    if key.startswith("stem."):
        _, conv, part, rest = key.split(".")
        return f"{conv if part == 'conv' else conv.replace('conv', 'bn')}.{rest}"
    _, stage, block, *rest = key.split(".")
    inner = ".".join(rest)
    for old, new in (
        ("conv1_1x1.conv.", "conv1."),
        ("conv1_1x1.bn.", "bn1."),
        ("conv2_kxk.conv.", "conv2."),
        ("conv2_kxk.bn.", "bn2."),
        ("conv3_1x1.conv.", "conv3."),
        ("conv3_1x1.bn.", "bn3."),
        ("shortcut.conv.conv.", "downsample.0."),
        ("shortcut.conv.bn.", "downsample.1."),
    ):
        inner = inner.replace(old, new)
    return f"layer{int(stage) + 1}.{block}.{inner}"


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "architecture"),
    [("pe-core-b16", "vit_pe_core_base_patch16_224"), ("pe-spatial-b16", "vit_pe_spatial_base_patch16_512")],
)
def test_a_perception_encoder_is_timms_features(timm: Any, tmp_path: Path, name: str, architecture: str) -> None:
    network = timm.create_model(architecture, pretrained=False, dynamic_img_size=True).eval()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(f'{{"architecture": "{architecture}"}}')
    encoder = build_image_encoder(f"{name}@{tmp_path}")
    assert (encoder.dim, encoder.stride, encoder.mean) == (768, 16, (0.5, 0.5, 0.5))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = F.normalize(network.forward_features((images - 0.5) / 0.5)[:, 1:], dim=-1)
    torch.testing.assert_close(encoder(images).flatten(2).transpose(1, 2), expected)
    assert encoder(torch.rand(1, 3, 40, 96)).shape == (1, 768, 2, 6)
