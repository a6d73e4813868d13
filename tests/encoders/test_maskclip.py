"""Compare MaskCLIP's value tokens with an explicit value path, on a tiny random CLIP read from disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusioner.encoders.image import CLIP_MEAN, CLIP_STD
from fusioner.encoders.registry import IMAGE_ENCODERS, build_image_encoder, value_tokens
from fusioner.errors import FusionerError

Make = Callable[[str], tuple[Path, Any]]


def by_hand(model: Any, images: Tensor) -> Tensor:
    """Replace the attention of the last block by v and the output projection, and keep its residual and MLP."""
    pixels = (images - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    tower = model.vision_model
    states = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    x, block = states[-2], tower.encoder.layers[-1]
    attention, normal = block.self_attn, block.layer_norm1
    y = F.layer_norm(x, x.shape[-1:], normal.weight, normal.bias, normal.eps)
    v = y @ attention.v_proj.weight.T + attention.v_proj.bias
    x = x + v @ attention.out_proj.weight.T + attention.out_proj.bias
    x = x + block.mlp(block.layer_norm2(x))
    return model.visual_projection(tower.post_layernorm(x[:, 1:]))  # (b, gh * gw, d)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (24, 56)])
def test_the_value_path_by_hand(image_model: Make, size: tuple[int, int]) -> None:
    folder, model = image_model("clip")
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    plain, masked = (build_image_encoder(f"{name}@{folder}") for name in ("clip-vit-b16", "maskclip-vit-b16"))
    tokens = masked(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, F.normalize(by_hand(model, images), dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked(images), plain(images), atol=1e-2)
    assert masked.fingerprint() != plain.fingerprint()
    assert masked.name == f"maskclip-vit-b16@{folder}"


def test_which_encoder_gives_value_tokens(tmp_path: Path) -> None:
    clips = [name for name in IMAGE_ENCODERS if name.startswith("clip-vit")]
    assert {value_tokens(name) for name in clips} == {f"mask{name}" for name in clips} <= set(IMAGE_ENCODERS)
    assert value_tokens(f"dinov2-s+clip-vit-l14@{tmp_path}") == f"maskclip-vit-l14@{tmp_path}"
    assert value_tokens("clip-rn50") == "clip-rn50"  # its dense tokens are the pooling's values already
    assert value_tokens("maskclip-vit-b16") == "maskclip-vit-b16"
    for other in ("hf:openai/clip-vit-base-patch16", "siglip2-b16"):
        assert value_tokens(other) == f"maskclip:{other}"
    with pytest.raises(FusionerError, match=r"which .* is not: name clip-vit-b16"):
        value_tokens("dinov2-s")


def test_siglips_patches_pass_its_pooling_head_one_by_one(text_model: Make) -> None:
    folder, model = text_model("siglip")
    vision, images = model.vision_model, torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    masked, plain = (build_image_encoder(f"{method}hf:{folder}") for method in ("maskclip:", ""))
    with torch.no_grad():
        states = vision((images - 0.5) / 0.5, interpolate_pos_encoding=True).last_hidden_state  # (2, 24, 32)
        alone = vision.head(states.flatten(0, 1)[:, None]).unflatten(0, states.shape[:2])
    expected = F.normalize(alone, dim=-1).transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(masked(images), expected, rtol=1e-4, atol=1e-5)
    assert (masked.text_aligned, plain.text_aligned) == (True, False)
    assert masked.fingerprint() != plain.fingerprint()
    with pytest.raises(FusionerError, match="sclip is not a method for a model of type siglip"):
        build_image_encoder(f"sclip:hf:{folder}")
