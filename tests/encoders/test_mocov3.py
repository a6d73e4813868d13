"""Test MoCo v3 with a checkpoint in the published key layout and a forward pass written from the paper."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusioner.encoders.mocov3 import load_mocov3, read_mocov3, remap_mocov3
from fusioner.encoders.registry import build_image_encoder
from fusioner.errors import FusionerError

WIDTH, HEADS, LAYERS, PATCH, GRID = 48, 12, 2, 8, 4


def sincos_positions(grid: int, width: int) -> Tensor:
    """Return the fixed embedding of the published models, (1, 1 + grid * grid, width); zeros for the class token."""
    omega = 1.0 / 10000 ** (torch.arange(width // 4) / (width // 4))
    first, second = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [index.flatten().float()[:, None] * omega for index in (first, second)]
    patches = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()], dim=1)
    return torch.cat([torch.zeros(1, width), patches])[None]


def published(width: int = WIDTH, seed: int = 0) -> dict[str, Tensor]:
    """Return a random vision transformer under timm's keys, with the projection head of pre-training."""
    generator = torch.Generator().manual_seed(seed)

    def weights(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=generator)

    state = {
        "cls_token": weights(1, 1, width),
        "pos_embed": sincos_positions(GRID, width),
        "patch_embed.proj.weight": weights(width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": weights(width),
        "norm.weight": 1 + weights(width),
        "norm.bias": weights(width),
        "head.0.weight": weights(16, width),
        "head.1.running_mean": weights(16),
        "head.1.num_batches_tracked": torch.tensor(7),
    }
    for layer in range(LAYERS):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for part, shape in sizes.items():
            state[f"blocks.{layer}.{part}.weight"] = weights(*shape)
            state[f"blocks.{layer}.{part}.bias"] = weights(shape[0])
        for norm in ("norm1", "norm2"):
            state[f"blocks.{layer}.{norm}.weight"] = 1 + weights(width)
            state[f"blocks.{layer}.{norm}.bias"] = weights(width)
    return state


def timm_forward(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Run timm's VisionTransformer on a square image of the trained size, (b, gh * gw, width)."""
    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]
    for layer in range(LAYERS):
        block = {key.removeprefix(f"blocks.{layer}."): value for key, value in state.items()}
        y = F.layer_norm(x, (WIDTH,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        qkv = F.linear(y, block["attn.qkv.weight"], block["attn.qkv.bias"])
        query, key, value = qkv.reshape(len(x), -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        y = (attention @ value).transpose(1, 2).flatten(2)
        x = x + F.linear(y, block["attn.proj.weight"], block["attn.proj.bias"])
        y = F.layer_norm(x, (WIDTH,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        x = x + F.linear(y, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
    return F.layer_norm(x, (WIDTH,), state["norm.weight"], state["norm.bias"], 1e-6)[:, 1:]


def checkpoint(base: dict[str, Tensor], momentum: dict[str, Tensor] | None = None) -> dict[str, Any]:
    """Return the content of a file written by the training script."""
    state = {f"module.base_encoder.{key}": value for key, value in base.items()}
    state |= {f"module.momentum_encoder.{key}": value for key, value in (momentum or {}).items()}
    state["module.predictor.0.weight"] = torch.zeros(4, 4)
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "optimizer": {"param_groups": [{"lr": 0.1}]}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vit-s-300ep.pth.tar"
    torch.save(checkpoint(published(), published(seed=1)), path)
    return path


def test_tokens_are_those_of_a_plain_forward(file: Path) -> None:
    encoder = load_mocov3(file, "moco")
    images = torch.rand(2, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(2))
    pixels = (images - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(1, 3, 1, 1)
    expected = F.normalize(timm_forward(published(), pixels), dim=2)
    tokens = encoder(images)
    assert tokens.shape == (2, WIDTH, GRID, GRID)
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_other_sizes_keep_the_grid(file: Path) -> None:
    assert load_mocov3(file, "moco")(torch.rand(1, 3, 24, 56)).shape == (1, WIDTH, 3, 7)


def test_base_encoder_first_momentum_encoder_else() -> None:
    base, momentum = published(), published(seed=1)
    both = remap_mocov3(checkpoint(base, momentum)["state_dict"])
    assert torch.equal(both["embeddings.cls_token"], base["cls_token"])
    only = checkpoint({}, momentum)["state_dict"]
    assert torch.equal(remap_mocov3(only)["embeddings.cls_token"], momentum["cls_token"])
    assert remap_mocov3(momentum).keys() == both.keys()  # also without any prefix


def test_a_published_name_needs_its_file_and_its_width(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=r"mocov3-vit-s@/path/FILE\.pth\.tar"):
        build_image_encoder("mocov3-vit-s")
    with pytest.raises(FusionerError, match="width 48, not 384"):
        build_image_encoder(f"mocov3-vit-s@{file}")
    torch.save(checkpoint(published(width=384)), tmp_path / "small.pth.tar")
    encoder = build_image_encoder(f"mocov3-vit-s@{tmp_path}/small.pth.tar")
    assert (encoder.dim, encoder.name) == (384, f"mocov3-vit-s@{tmp_path}/small.pth.tar")


def test_bad_files_get_one_sentence(file: Path, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match="there is no MoCo v3 checkpoint"):
        read_mocov3(tmp_path / "nothing.pth.tar")
    (tmp_path / "cut.pth.tar").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(FusionerError, match="cannot be read"):
        read_mocov3(tmp_path / "cut.pth.tar")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth.tar")
    with pytest.raises(FusionerError, match="no MoCo v3 vision transformer"):
        load_mocov3(tmp_path / "resnet.pth.tar", "moco")
    incomplete = published()
    del incomplete["blocks.1.mlp.fc2.bias"]
    torch.save(checkpoint(incomplete), tmp_path / "incomplete.pth.tar")
    with pytest.raises(FusionerError, match=r"layers\.1\.mlp\.fc2\.bias"):
        load_mocov3(tmp_path / "incomplete.pth.tar", "moco")


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Harmful()}, "harmful.pth.tar")
    with pytest.raises(FusionerError, match="cannot be read"):
        read_mocov3("harmful.pth.tar")
    assert not Path("harm-was-done").exists()
