"""Compare every image adapter with the forward pass of its library, on tiny random models read from disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTConfig, ViTModel

from fusioner.encoders.base import ImageEncoder
from fusioner.encoders.image import CLIP_MEAN, CLIP_STD, IMAGE_BACKBONES, IMAGENET_MEAN, IMAGENET_STD
from fusioner.encoders.registry import build_image_encoder

KINDS = ["clip", "metaclip_2", "siglip", "vit", "vit_mae", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"]
PREFIX = {"vit": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 4, "dinov3_vit": 4}  # tokens before the patches
NORMALISATION = {"clip": (CLIP_MEAN, CLIP_STD), "metaclip_2": (CLIP_MEAN, CLIP_STD), "siglip": ((0.5,) * 3, (0.5,) * 3)}
SIZES = [(32, 32), (32, 48), (56, 24), (8, 8)]  # the trained size; wide; tall; one patch

Make = Callable[[str], tuple[Path, Any]]


def library_tokens(kind: str, model: Any, images: Tensor) -> Tensor:
    """Return the patch states of the library for RGB in [0, 1], (b, gh * gw, d)."""
    mean, std = NORMALISATION.get(kind, (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    if kind in ("clip", "metaclip_2"):
        states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        return model.visual_projection(model.vision_model.post_layernorm(states))
    if kind == "siglip":
        return model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    if kind == "vit_mae":
        model.config.mask_ratio = 0.0
        count = images.shape[-2] // 8 * (images.shape[-1] // 8)
        order = torch.arange(count).float().expand(len(images), -1)  # rising noise keeps the patches in order
        return model.vit(pixels, noise=order, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    options = {"interpolate_pos_encoding": True} if kind in ("vit", "deit") else {}
    return model(pixels, **options).last_hidden_state[:, PREFIX[kind] :]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder(kind: str, image_model: Make) -> ImageEncoder:
    return build_image_encoder(f"hf:{image_model(kind)[0]}")


def test_every_supported_type_is_tested() -> None:
    assert {kind.removesuffix("_vision_model") for kind in IMAGE_BACKBONES} == set(KINDS)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_tokens_are_the_librarys(kind: str, encoder: ImageEncoder, image_model: Make, size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    expected = library_tokens(kind, image_model(kind)[1], images)
    tokens = encoder(images)
    grid = (size[0] // 8, size[1] // 8)
    assert tokens.shape == (2, encoder.dim, *grid)
    assert encoder.stride == 8
    assert encoder.dim == (24 if kind in ("clip", "metaclip_2") else 32)
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(2, *grid))
    for row in range(grid[0]):  # explicit rows, because a reshape could hide a transposed grid
        for column in range(grid[1]):
            token = F.normalize(expected[:, row * grid[1] + column], dim=1)
            torch.testing.assert_close(tokens[:, :, row, column], token, rtol=1e-4, atol=1e-5)


def test_the_changed_patch_moves_its_own_token_most(encoder: ImageEncoder) -> None:
    images = torch.full((1, 3, 32, 48), 0.5)
    for row, column in [(0, 5), (3, 0), (2, 4)]:
        changed = images.clone()
        generator = torch.Generator().manual_seed(row)
        changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.rand(3, 8, 8, generator=generator)
        moved = (encoder(changed) - encoder(images)).norm(dim=1)[0]  # (gh, gw)
        assert divmod(int(moved.argmax()), 6) == (row, column)


def test_an_image_does_not_depend_on_its_batch(encoder: ImageEncoder) -> None:
    images = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(4))
    together = encoder(images)
    for index in range(3):
        torch.testing.assert_close(
            together[index : index + 1], encoder(images[index : index + 1]), rtol=1e-4, atol=1e-5
        )


def test_other_sizes_are_squeezed_to_the_stride(encoder: ImageEncoder) -> None:
    images = torch.rand(1, 3, 37, 55, generator=torch.Generator().manual_seed(5))
    squeezed = F.interpolate(images, size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(encoder(images), encoder(squeezed))
    assert encoder(images[..., :5, :20]).shape[-2:] == (1, 2)  # at least one token


def test_mean_and_std_can_be_replaced(kind: str, image_model: Make) -> None:
    folder, _ = image_model(kind)
    encoder, other = (build_image_encoder(f"hf:{folder}") for _ in range(2))
    assert (encoder.mean, encoder.std) == NORMALISATION.get(kind, (IMAGENET_MEAN, IMAGENET_STD))
    before = encoder.fingerprint()
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    normalised = (images - torch.tensor(encoder.mean).view(1, 3, 1, 1)) / torch.tensor(encoder.std).view(1, 3, 1, 1)
    other.mean, other.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    torch.testing.assert_close(other(normalised), encoder(images))
    assert other.fingerprint() != before == encoder.fingerprint()


def test_normalisation_is_read_from_the_folder(image_model: Make, tmp_path: Path) -> None:
    folder, _ = image_model("dinov2")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = build_image_encoder(f"hf:{tmp_path}")
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert encoder.std == (0.4, 0.5, 0.6)


@torch.no_grad()
def test_positions_are_interpolated_by_hand(tmp_path: Path) -> None:
    """Without layers and with blank patches, tokens are positions, interpolated bicubically."""
    model = ViTModel(
        ViTConfig(hidden_size=32, num_hidden_layers=0, image_size=32, patch_size=8), add_pooling_layer=False
    )
    positions = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(7))
    model.embeddings.position_embeddings.copy_(positions)
    model.embeddings.patch_embeddings.projection.weight.zero_()
    model.save_pretrained(tmp_path)
    tokens = build_image_encoder(f"hf:{tmp_path}")(torch.rand(1, 3, 24, 56))
    grid = positions[:, 1:].transpose(1, 2).reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(3, 7), mode="bicubic", align_corners=False)
    expected = F.layer_norm(expected.permute(0, 2, 3, 1), (32,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(tokens, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-5)


def test_mae_tokens_are_in_order(image_model: Make) -> None:
    encoder = build_image_encoder(f"mae-vit-b@{image_model('vit_mae')[0]}")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(8))
    assert torch.equal(encoder(images), encoder(images))


def test_fingerprints_differ_between_weights(image_model: Make, tmp_path: Path) -> None:
    folder, _ = image_model("vit")
    first, second = (build_image_encoder(f"hf:{folder}") for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert isinstance(second, torch.nn.Module)
    assert first.fingerprint() != second.half().fingerprint()
    with torch.no_grad():
        third = build_image_encoder(f"hf:{folder}")
        assert isinstance(third, torch.nn.Module)
        next(third.parameters()).view(-1)[0] += 1
    assert third.fingerprint() != first.fingerprint()


def test_half_precision_answers_in_fp32(image_model: Make) -> None:
    encoder: Any = build_image_encoder(f"hf:{image_model('clip')[0]}")
    images = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(9))
    exact = encoder(images)
    rough = encoder.bfloat16()(images)
    assert rough.dtype == torch.float32
    assert F.cosine_similarity(exact, rough).min() > 0.99
