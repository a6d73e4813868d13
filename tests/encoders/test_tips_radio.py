"""Test TIPSv2 and C-RADIO with published keys and configurations against the layers of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    RadioConfig,
    RadioModel,
    Tipsv2Config,
    Tipsv2Model,
    Tipsv2TextConfig,
    Tipsv2VisionConfig,
)

from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.errors import FusionerError

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
TEXTS = ["cat", "a photo of the red sofa ."]
AUTHORS = {"auto_map": {"AutoConfig": "code.Config"}}  # remote code, which is never run


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(params=["transformers", "authors"])
def tips(request: pytest.FixtureRequest, make_tokenizer: Any, tmp_path: Path) -> tuple[Path, Any]:
    """Save a TIPSv2 under the published keys, with transformers' configuration or the authors' flat one."""
    vision = Tipsv2VisionConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, mlp_ratio=3, image_size=32, patch_size=8
    )
    tokenizer = make_tokenizer()
    size: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    text = Tipsv2TextConfig(**size, vocab_size=len(tokenizer), max_position_embeddings=20)
    model = randomized(Tipsv2Model(Tipsv2Config(vision_config=vision, text_config=text)))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors")
    assert "vision_encoder.blocks.0.attn.qkv.weight" in keys
    if request.param == "authors":
        flat = {"model_type": "tipsv2", "vision_fn": "vit_tiny", "embed_dim": 32, "img_size": 32, "patch_size": 8}
        flat |= {"num_register_tokens": 1, "text_hidden_size": 32, "text_mlp_dim": 64, "text_num_heads": 4}
        flat |= {"text_num_layers": 2, "vocab_size": len(tokenizer), "max_len": 20, **AUTHORS}
        (tmp_path / "config.json").write_text(json.dumps(flat))
    return tmp_path, model


@torch.no_grad()
def test_tips_patches_are_the_last_layers_values(tips: tuple[Path, Any]) -> None:
    folder, model = tips
    encoder = build_image_encoder(f"tipsv2-b@{folder}")
    assert (encoder.dim, encoder.stride, encoder.mean, encoder.text_aligned) == (32, 8, (0.0, 0.0, 0.0), True)
    vision = model.vision_model
    states = vision.embeddings(IMAGES)  # not normalised
    *layers, last = vision.encoder.layer
    for layer in layers:
        states = layer(states)
    attention = last.attention
    states = states + last.layer_scale1(attention.o_proj(attention.v_proj(last.norm1(states))))
    states = states + last.layer_scale2(last.mlp(last.norm2(states)))
    expected = F.normalize(vision.layernorm(states)[:, 2:], dim=-1)  # after class and register token
    torch.testing.assert_close(encoder(IMAGES).flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_tips_texts_are_lower_cased_and_pooled(tips: tuple[Path, Any]) -> None:
    folder, model = tips
    encoder: Any = build_text_encoder(f"tipsv2-text-b@{folder}")
    for text in TEXTS:
        ids = encoder._tokenizer(text, return_tensors="pt")["input_ids"]
        expected = F.normalize(model.text_model(ids).pooler_output[0], dim=0)
        torch.testing.assert_close(encoder([text.upper(), TEXTS[1]])[0], expected)
    assert encoder.dim == build_image_encoder(f"tipsv2-b@{folder}").dim


def test_tips_comes_from_the_hub(hub: Any, tips: tuple[Path, Any]) -> None:
    hub.add("google/tipsv2-l14", tips[0])
    expected = build_image_encoder(f"tipsv2-b@{tips[0]}")(IMAGES)
    assert torch.equal(build_image_encoder("tipsv2-l")(IMAGES), expected)
    assert build_text_encoder("tipsv2-text-l")(TEXTS).shape == (2, 32)


@pytest.fixture(params=["transformers", "authors"])
def radio(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any]:
    """Save a C-RADIO under the published keys, with transformers' configuration or the authors' remote code."""
    sizes: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 12, "mlp_ratio": 2.0}
    config = RadioConfig(**sizes, patch_size=8, max_img_size=64, num_cls_tokens=3, num_registers=5)
    model = RadioModel(config)
    conditioner: Any = model.input_conditioner
    model = randomized(model)
    model.save_pretrained(tmp_path)
    assert "radio_model.model.blocks.0.attn.qkv.weight" in load_file(tmp_path / "model.safetensors")
    assert conditioner.norm_mean[0] > 0.4
    if request.param == "authors":
        (tmp_path / "config.json").write_text(json.dumps({"args": {"model": "vit_base_patch16_224"}, **AUTHORS}))
    return tmp_path, model


@torch.no_grad()
def test_radio_features_are_the_librarys(radio: tuple[Path, Any]) -> None:
    folder, model = radio
    encoder = build_image_encoder(f"c-radiov3-b@{folder}")
    assert (encoder.dim, encoder.stride, encoder.text_aligned) == (48, 8, False)
    expected = F.normalize(model(IMAGES).features, dim=-1)  # which normalises images itself
    torch.testing.assert_close(encoder(IMAGES).flatten(2).transpose(1, 2), expected)


def test_another_model_is_no_radio(image_model: Any, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match="'vit', not one of radio"):
        build_image_encoder(f"c-radiov4-h@{image_model('vit')[0]}")
    folder = image_model("vit")[0]
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FusionerError, match="does not hold a C-RADIO: it lacks radio_model"):
        build_image_encoder(f"c-radiov4-h@{tmp_path}")
