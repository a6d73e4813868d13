"""CLIP in OpenAI's key layout, which open_clip and the official Fusioner checkpoints share.

Keys become those of transformers' `CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPTextConfig, CLIPVisionConfig

from fusioner.encoders.pretrained import clip_config, rename_keys
from fusioner.errors import FusionerError

_LAYER = r"transformer\.resblocks\.(\d+)\."
_LAYER_RULES = {
    rf"{_LAYER}attn\.in_proj_(weight|bias)": r"encoder.layers.\1.self_attn.{qkv}_proj.\2",
    rf"{_LAYER}attn\.(out_proj\.\w+)": r"encoder.layers.\1.self_attn.\2",
    rf"{_LAYER}ln_([12]\.\w+)": r"encoder.layers.\1.layer_norm\2",
    rf"{_LAYER}mlp\.c_fc\.(\w+)": r"encoder.layers.\1.mlp.fc1.\2",
    rf"{_LAYER}mlp\.c_proj\.(\w+)": r"encoder.layers.\1.mlp.fc2.\2",
    r"positional_embedding": "embeddings.position_embedding.weight",
}
_VISION_RULES = {
    **{pattern: f"vision_model.{new}" for pattern, new in _LAYER_RULES.items()},
    r"class_embedding": "vision_model.embeddings.class_embedding",
    r"conv1\.weight": "vision_model.embeddings.patch_embedding.weight",
    r"ln_pre\.(\w+)": r"vision_model.pre_layrnorm.\1",  # spelt so in transformers
    r"ln_post\.(\w+)": r"vision_model.post_layernorm.\1",
    r"proj": "visual_projection.weight",
}
_TEXT_RULES = {
    **{pattern: f"text_model.{new}" for pattern, new in _LAYER_RULES.items()},
    r"token_embedding\.weight": "text_model.embeddings.token_embedding.weight",
    r"ln_final\.(\w+)": r"text_model.final_layer_norm.\1",
    r"text_projection": "text_projection.weight",
}
_SHARED = {"logit_scale", "logit_bias", "attn_mask", "input_resolution", "context_length", "vocab_size"}
_FIRST_MLP = "transformer.resblocks.0.mlp.c_fc.bias"


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is a whole CLIP under OpenAI's keys."""
    return "visual.class_embedding" in state or "token_embedding.weight" in state


def remap_openai_visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the image encoder's keys, with or without `visual.`; other parts of a whole CLIP are dropped."""
    return rename_keys(_transposed(_visual(state), "proj"), _VISION_RULES, "CLIP vision transformer")


def remap_openai_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the text encoder's keys; the image encoder and the scalars of a whole CLIP are dropped."""
    return rename_keys(_transposed(_text(state), "text_projection"), _TEXT_RULES, "CLIP text transformer")


def vision_config(state: Mapping[str, Tensor], heads: int | None) -> CLIPVisionConfig:
    """Read the sizes of OpenAI's image encoder off its tensors; heads of 64 channels unless their number is given."""
    state = _visual(state)
    width, patch = state["conv1.weight"].shape[0], state["conv1.weight"].shape[-1]
    grid = round((len(state["positional_embedding"]) - 1) ** 0.5)
    sizes = {"patch_size": patch, "image_size": patch * grid, "head_width": width // heads if heads else min(64, width)}
    return clip_config("vision", state["proj"].shape[1], True, {**sizes, **_sizes(state, width)})


def text_config(state: Mapping[str, Tensor], heads: int | None) -> CLIPTextConfig:
    """Read the sizes of OpenAI's text encoder off its tensors; the last token ends a text."""
    state = _text(state)
    vocabulary, width = state["token_embedding.weight"].shape
    sizes = {"vocab_size": vocabulary, "context_length": len(state["positional_embedding"])}
    sizes["heads"] = heads or max(1, width // 64)
    return clip_config("text", state["text_projection"].shape[1], True, {**sizes, **_sizes(state, width)})


class _Weights(dict[str, Tensor]):
    def __missing__(self, key: str) -> Tensor:
        raise FusionerError(f"the CLIP weights lack {key!r}")


def _visual(state: Mapping[str, Tensor]) -> _Weights:
    visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    return _Weights(visual or state)


def _text(state: Mapping[str, Tensor]) -> _Weights:
    return _Weights((key, state[key]) for key in state if key not in _SHARED and not key.startswith("visual."))


def _transposed(state: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
    """Turn a projection from (in, out) to a Linear's (out, in)."""
    return {own: value.T.contiguous() if own == key else value for own, value in state.items()}


def _sizes(state: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    layers = sum(key.endswith("mlp.c_fc.bias") for key in state)
    return {"width": width, "layers": layers, "mlp_ratio": len(state[_FIRST_MLP]) / width}
