"""MoCo v3 vision transformers: the published checkpoint's keys, renamed to transformers' `ViTModel`.

The file of https://github.com/facebookresearch/moco-v3 is `{"state_dict": {"module.base_encoder.*": ...}}` with timm's
keys, a fixed 2-D sin-cos position embedding stored like a learned one, LayerNorm eps 1e-6, and 12 heads in both ViT-S
and ViT-B.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from fusioner.encoders.image import PatchTransformer
from fusioner.errors import FusionerError

HEADS = 12
_PREFIXES = ("module.base_encoder.", "base_encoder.", "module.momentum_encoder.", "momentum_encoder.", "module.", "")
_KEYS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
_BLOCK_KEYS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def remap_mocov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `state_dict` of a MoCo v3 checkpoint -> `ViTModel`'s keys, in fp32.

    Takes the base encoder (the momentum encoder where there is no other), without its projection head; FusionerError
    when the keys are those of another network.
    """
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}patch_embed.proj.weight" in state), None)
    if prefix is None:
        raise FusionerError(
            "the checkpoint holds no MoCo v3 vision transformer (no key ends in patch_embed.proj.weight)"
        )
    mapped: dict[str, Tensor] = {}
    for key, value in state.items():
        own = key.removeprefix(prefix)
        if key.startswith(prefix) and not own.startswith(
            ("head.", "module.", "base_encoder.", "momentum_encoder.", "predictor.")
        ):
            mapped.update(_remap(own, value.detach().float()))
    return mapped


def _remap(key: str, value: Tensor) -> dict[str, Tensor]:
    if key in _KEYS:
        return {_KEYS[key]: value}
    block = _BLOCK.fullmatch(key)
    if block is None:
        raise FusionerError(f"{key!r} is no key of a MoCo v3 vision transformer")
    layer, part, kind = block.groups()
    if part == "attn.qkv":  # one matrix of (3 * width) rows: query, key, value
        pieces = zip("qkv", value.chunk(3), strict=True)
        return {f"layers.{layer}.attention.{letter}_proj.{kind}": piece for letter, piece in pieces}
    return {f"layers.{layer}.{_BLOCK_KEYS[part]}.{kind}": value}


def read_mocov3(path: str | Path) -> dict[str, Tensor]:
    """The `state_dict` of a file (weights only: nothing in it is run); FusionerError when it cannot be read."""
    try:
        content: Any = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FusionerError(f"there is no MoCo v3 checkpoint {path}") from error
    except Exception as error:  # pickle, zip and torch each raise their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FusionerError(f"the MoCo v3 checkpoint {path} cannot be read ({reason})") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FusionerError(f"{path} is not a MoCo v3 checkpoint: it holds no state_dict of tensors")
    return dict(state)


def load_mocov3(path: str | Path, name: str, width: int | None = None) -> PatchTransformer:
    """The frozen image encoder of a published checkpoint file.

    Args:
        path: the `.pth.tar` file.
        name: kept as `.name`.
        width: the token width the name stands for (384 for ViT-S, 768 for ViT-B); None takes any.

    Raises:
        FusionerError: no such file, not a MoCo v3 checkpoint, or one of another size.
    """
    mapped = remap_mocov3(read_mocov3(path))
    patches, positions = (mapped.get(_KEYS[key]) for key in ("patch_embed.proj.weight", "pos_embed"))
    hidden = [len(value) for key, value in mapped.items() if key.endswith("mlp.fc1.bias")]
    if patches is None or positions is None or not hidden:
        raise FusionerError(f"the MoCo v3 checkpoint {path} lacks its position embedding or its blocks")
    if width not in (None, len(patches)):
        raise FusionerError(f"{name}: {path} has tokens of width {len(patches)}, not {width}")
    patch = patches.shape[-1]
    config = ViTConfig(
        hidden_size=len(patches),
        intermediate_size=hidden[0],
        num_hidden_layers=len(hidden),
        num_attention_heads=HEADS,
        image_size=patch * round((positions.shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False)
    try:
        model.load_state_dict(mapped)
    except RuntimeError as error:
        raise FusionerError(
            f"the MoCo v3 checkpoint {path} is incomplete: {str(error).splitlines()[1].strip()}"
        ) from error
    return PatchTransformer(model, name, interpolate=True)
