"""CLIP towers from OpenAI's own key layout, as also the official Fusioner checkpoint stores them.

`visual.*` (vision transformer) and `transformer.*`, `token_embedding`, ... (text) become the state dicts of
transformers' `CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection`; sizes are read off the tensors.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from fusioner.encoders.image import CLIP_MEAN, CLIP_STD, RGB, ClipVision
from fusioner.encoders.text import ClipText
from fusioner.errors import FusionerError

M = TypeVar("M", bound=nn.Module)
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_BLOCK_KEYS = {
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_VISUAL_KEYS = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so in transformers
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}
_TEXT_KEYS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_TRANSPOSED = {"proj", "text_projection"}  # stored as (in, out); a Linear holds (out, in)
_SCALARS = {"logit_scale", "input_resolution", "context_length", "vocab_size"}  # of the whole model, not of a tower


def remap_openai_visual(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's vision transformer keys (with or without `visual.`) -> `CLIPVisionModelWithProjection`'s, in fp32.

    Raises FusionerError for a key that no CLIP vision transformer has (a ResNet's, say).
    """
    return _remap({key.removeprefix("visual."): value for key, value in state.items()}, _VISUAL_KEYS, "vision_model")


def remap_openai_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's keys of the text transformer -> `CLIPTextModelWithProjection`'s, in fp32.

    `visual.*`, `logit_scale` and the size entries of a whole CLIP are passed over; FusionerError for any other
    unknown key.
    """
    own = {key: value for key, value in state.items() if key not in _SCALARS and not key.startswith("visual.")}
    return _remap(own, _TEXT_KEYS, "text_model")


def clip_vision_from_openai(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    activation: str = "quick_gelu",
    name: str = "clip-openai",
    mean: RGB = CLIP_MEAN,
    std: RGB = CLIP_STD,
) -> ClipVision:
    """A frozen CLIP image encoder with these weights; heads: width // 64 unless told, as in every published CLIP."""
    mapped = remap_openai_visual(state)
    conv = _need(mapped, "vision_model.embeddings.patch_embedding.weight")  # (width, 3, patch, patch)
    positions = _need(mapped, "vision_model.embeddings.position_embedding.weight")  # (1 + grid * grid, width)
    width, patch = conv.shape[0], conv.shape[-1]
    config = CLIPVisionConfig(
        **_tower(mapped, width, heads),
        projection_dim=_need(mapped, "visual_projection.weight").shape[0],
        hidden_act=activation,
        image_size=patch * round((len(positions) - 1) ** 0.5),
        patch_size=patch,
    )
    return ClipVision(_fill(CLIPVisionModelWithProjection(config), mapped), name, mean, std)


def clip_text_from_openai(
    state: Mapping[str, Tensor], tokenizer: Any, *, heads: int | None = None, name: str = "clip-text-openai"
) -> ClipText:
    """A frozen CLIP text encoder with these weights and a transformers tokenizer; heads as for the image encoder."""
    mapped = remap_openai_text(state)
    vocabulary, width = _need(mapped, "text_model.embeddings.token_embedding.weight").shape
    config = CLIPTextConfig(
        **_tower(mapped, width, heads),
        projection_dim=_need(mapped, "text_projection.weight").shape[0],
        hidden_act="quick_gelu",
        vocab_size=vocabulary,
        max_position_embeddings=len(_need(mapped, "text_model.embeddings.position_embedding.weight")),
        eos_token_id=vocabulary - 1,  # the last entry, whose state is the text's
        bos_token_id=vocabulary - 2,
    )
    return ClipText(_fill(CLIPTextModelWithProjection(config), mapped), tokenizer, name)


def _remap(state: Mapping[str, Tensor], names: Mapping[str, str], tower: str) -> dict[str, Tensor]:
    mapped: dict[str, Tensor] = {}
    for key, value in state.items():
        value = value.detach().float()
        if key in names:
            mapped[names[key]] = value.T.contiguous() if key in _TRANSPOSED else value
        elif block := _BLOCK.fullmatch(key):
            mapped.update(_remap_block(key, f"{tower}.encoder.layers.{block[1]}.", block[2], value))
        else:
            raise FusionerError(f"{key!r} is no key of a CLIP {tower.removesuffix('_model')} transformer")
    return mapped


def _remap_block(key: str, prefix: str, rest: str, value: Tensor) -> dict[str, Tensor]:
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = rest.removeprefix("attn.in_proj_")
        return {
            f"{prefix}self_attn.{part}_proj.{kind}": piece for part, piece in zip("qkv", value.chunk(3), strict=True)
        }
    for theirs, ours in _BLOCK_KEYS.items():
        if rest.startswith(theirs):
            return {prefix + ours + rest.removeprefix(theirs): value}
    raise FusionerError(f"{key!r} is no key of a CLIP transformer block")


def _need(mapped: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in mapped:
        theirs = next(their for their, our in {**_VISUAL_KEYS, **_TEXT_KEYS}.items() if our == key)
        raise FusionerError(f"the CLIP weights lack {theirs!r}")
    return mapped[key]


def _tower(mapped: Mapping[str, Tensor], width: int, heads: int | None) -> dict[str, Any]:
    """The sizes both towers share."""
    hidden = [len(value) for key, value in mapped.items() if key.endswith("mlp.fc1.bias")]
    if not hidden:
        raise FusionerError("the CLIP weights hold no transformer block")
    return {
        "hidden_size": width,
        "intermediate_size": hidden[0],
        "num_hidden_layers": len(hidden),
        "num_attention_heads": heads or max(1, width // 64),
    }


def _fill(model: M, mapped: Mapping[str, Tensor]) -> M:
    try:
        model.load_state_dict(mapped)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise FusionerError(f"the CLIP weights do not make one model: {problem}") from error
    return model
