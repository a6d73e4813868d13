"""Frozen image encoders: RGB in, dense unit-length patch tokens out.

Every vision transformer here ends its sequence with the patches in row order; tokens before them (class, registers,
distillation) are dropped. transformers interpolates the position embeddings, also for H != W.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, PretrainedConfig, PreTrainedModel, ViTConfig

from fusioner.encoders.attention import Attention, LastLayer
from fusioner.encoders.base import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, RGB, DenseEncoder, to_grid
from fusioner.encoders.hub import locate
from fusioner.encoders.open_clip import is_openai, remap_openai_visual, vision_config
from fusioner.encoders.pretrained import (
    accepts,
    build_model,
    fingerprinted_settings,
    read_config,
    read_normalisation,
    tower_config,
)
from fusioner.errors import FusionerError


class PatchTransformer(DenseEncoder):
    """Patch tokens of a transformers vision model: its `last_hidden_state`, after the final LayerNorm.

    For SigLIP these are the states before the attention pooling head, which returns one vector per image.
    """

    def __init__(self, model: PreTrainedModel, name: str, mean: RGB = IMAGENET_MEAN, std: RGB = IMAGENET_STD) -> None:
        super().__init__(name, model.config.hidden_size, _patch_side(model.config.patch_size), mean, std)
        self.model: Any = model
        if isinstance(size := getattr(model.config, "image_size", None), int):
            self.image_size = size
        takes_option = accepts(model.forward, "interpolate_pos_encoding")  # the others always interpolate
        self._options: dict[str, Any] = {"interpolate_pos_encoding": True} if takes_option else {}
        self.freeze()

    def settings(self) -> dict[str, Any]:
        return fingerprinted_settings(self.model.config)

    def states(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        """Return the model's last states of all tokens."""
        return self.model(pixel_values=pixels.to(self.model.dtype), **self._options).last_hidden_state

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return to_grid(self.states(pixels), pixels, self.stride)


class AlignedPatches(PatchTransformer, ABC):
    """Patch tokens in the space of a text encoder: `head(values)`.

    With attention "values" the tokens are `values`, for attention weights from elsewhere (`encoders.proxyclip`).
    """

    text_aligned = True

    def __init__(self, model: PreTrainedModel, name: str, mean: RGB, std: RGB, attention: Attention) -> None:
        super().__init__(model, name, mean, std)
        self.attention = attention

    def settings(self) -> dict[str, Any]:
        return super().settings() | ({} if self.attention == "clip" else {"attention": self.attention})

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        values = self.values(pixels)
        return to_grid(values if self.attention == "values" else self.head(values), pixels, self.stride)

    @abstractmethod
    def values(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        """Return the states of all tokens before the head."""

    @abstractmethod
    def head(self, values: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        """Map `values`, or averages of them, to the joint space."""


class ClipVision(AlignedPatches):
    """CLIP's patch tokens in the joint space: `post_layernorm`, then `visual_projection`, as for the class token.

    `attention` is that of the last layer, see `LastLayer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        mean: RGB = CLIP_MEAN,
        std: RGB = CLIP_STD,
        attention: Attention = "clip",
    ) -> None:
        super().__init__(model, name, mean, std, attention)
        self.last = None
        self.dim = self.model.visual_projection.out_features
        if attention != "clip":
            encoder = self.model.vision_model.encoder
            encoder.layers, self.last = encoder.layers[:-1], LastLayer(encoder.layers[-1], attention)
        self.freeze()

    def values(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
        return self.last(self.states(pixels), grid) if self.last else self.states(pixels)

    def head(self, values: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        return self.model.visual_projection(self.model.vision_model.post_layernorm(values))


class SiglipVision(AlignedPatches):
    """SigLIP's patch tokens in the joint space: the pooling head on every patch alone, as MaskCLIP does in CLIP."""

    def __init__(self, model: PreTrainedModel, name: str, mean: RGB, std: RGB, attention: Attention) -> None:
        super().__init__(model, name, mean, std, attention)
        self.model.use_head = False  # for one vector per image

    def values(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b t c"]:
        attention = self.model.head.attention  # rows of its projection: query, key, value
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        return F.linear(self.states(pixels), weight, bias)

    def head(self, values: Float[Tensor, "b t c"]) -> Float[Tensor, "b t d"]:
        head = self.model.head
        states = head.attention.out_proj(values)
        return states + head.mlp(head.layernorm(states))


@dataclass(frozen=True)
class BackboneSpec:
    """Specification of an image encoder for a transformers `model_type`.

    Attributes:
        model: class in transformers.
        mean, std: normalisation, if the checkpoint does not state one.
        aligned: adapter whose tokens are in the space of the text encoder, for these `attentions`.
    """

    model: str
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    aligned: type[AlignedPatches] | None = None
    attentions: tuple[Attention, ...] = ()


_CLIP = BackboneSpec("CLIPVisionModelWithProjection", CLIP_MEAN, CLIP_STD, ClipVision, get_args(Attention))
_SIGLIP = BackboneSpec("SiglipVisionModel", HALF, HALF, SiglipVision, ("maskclip", "values"))
IMAGE_BACKBONES: dict[str, BackboneSpec] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "metaclip_2": replace(_CLIP, model="MetaClip2VisionModelWithProjection"),
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "vit": BackboneSpec("ViTModel"),
    "vit_mae": BackboneSpec("ViTModel"),  # ViTMAEModel shuffles tokens even if it masks none
    "deit": BackboneSpec("DeiTModel"),
    "dinov2": BackboneSpec("Dinov2Model"),
    "dinov2_with_registers": BackboneSpec("Dinov2WithRegistersModel"),
    "dinov3_vit": BackboneSpec("DINOv3ViTModel"),
}
"""transformers `model_type` -> how to load it."""


def load_image_encoder(
    source: str,
    name: str,
    model_types: Sequence[str] = (),
    *,
    attention: Attention = "clip",
    fallback: str = "",
    open_clip: bool = False,
) -> PatchTransformer:
    """Load a frozen image encoder from a folder or a Hugging Face repository.

    Args:
        source, name, fallback, open_clip: see `locate`.
        model_types: accepted `model_type`s; empty accepts all of `IMAGE_BACKBONES`.
        attention: of a CLIP's last layer, see `LastLayer`.
    """
    checkpoint = locate(source, name, fallback, open_clip=open_clip)
    config = read_config(checkpoint, model_types or IMAGE_BACKBONES)
    spec, state = IMAGE_BACKBONES[config.model_type], checkpoint.read()
    if is_openai(state):
        state = remap_openai_visual(state)
    aligned = spec.aligned if attention in spec.attentions else None
    if aligned is None and attention not in ("clip", "values"):
        raise FusionerError(f"{name}: {attention} is not a method for a model of type {config.model_type}")
    model = build_model(getattr(transformers, spec.model), _vision_config(config, aligned is not None), state, name)
    mean, std = read_normalisation(checkpoint) or (spec.mean, spec.std)
    return aligned(model, name, mean, std, attention) if aligned else PatchTransformer(model, name, mean, std)


def clip_vision_from_openai(
    state: Mapping[str, Tensor], *, heads: int | None = None, name: str = "clip-openai"
) -> ClipVision:
    """Build a CLIP image encoder from tensors under OpenAI's keys; by default its heads have 64 channels."""
    config = vision_config(state, heads)
    model = build_model(CLIPVisionModelWithProjection, config, remap_openai_visual(state), name, exact=True)
    return ClipVision(model, name)


def _vision_config(config: PretrainedConfig, aligned: bool) -> PretrainedConfig:
    if config.model_type == "vit_mae":
        shared = ViTConfig().to_dict().keys() & config.to_dict().keys()
        other = {"model_type", "architectures", "transformers_version", "pooler_output_size"}
        return ViTConfig(**{key: getattr(config, key) for key in shared - other})
    vision = tower_config(config, "vision_config")
    if vision.model_type == "siglip_vision_model":
        vision.vision_use_head = aligned  # pools to one vector per image
    return vision


def _patch_side(patch: int | list[int] | tuple[int, int]) -> int:
    sides = {patch} if isinstance(patch, int) else set(patch)
    if len(sides) != 1:
        raise FusionerError(f"patches of {patch} px are not square, which the token grid needs")
    return sides.pop()
