"""Frozen image encoders of the transformers library as one adapter: RGB in, dense unit-length patch tokens out.

Every vision transformer here ends its sequence with the patches in row order; what comes before them (class token,
registers, distillation token) is dropped. Positions are interpolated by the library itself, also at H != W.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, PretrainedConfig, PreTrainedModel, ViTConfig

from fusioner.encoders.base import FrozenImageEncoder, state_digest
from fusioner.encoders.hub import (
    RGB,
    load_pretrained,
    locate,
    model_settings,
    read_config,
    read_normalisation,
)
from fusioner.errors import FusionerError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)


class DenseEncoder(FrozenImageEncoder, ABC):
    """Base of the image adapters: resize, normalise, `tokens`, unit length.

    Attributes: see `fusioner.encoders.base.ImageEncoder`; assign `mean` and `std` to change the normalisation.
    """

    def __init__(self, name: str, dim: int, stride: int, mean: RGB, std: RGB) -> None:
        super().__init__()
        self.name, self.dim, self.stride = name, dim, stride
        self.mean, self.std = mean, std
        self._digest: str | None = None

    @abstractmethod
    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Normalised pixels, h and w multiples of the stride -> tokens of any length."""

    def settings(self) -> dict[str, Any]:
        """What decides the tokens beside the weights and the normalisation."""
        return {}

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """RGB in [0, 1] -> unit-length tokens on a grid of h // stride by w // stride (at least 1 by 1).

        A size that is not a multiple of the stride is squeezed to the next smaller one (bilinear, no antialiasing).
        """
        size = tuple(max(1, side // self.stride) * self.stride for side in images.shape[-2:])
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=False)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        tokens = self.tokens((images - mean) / std)  # (b, d, gh, gw)
        return F.normalize(tokens.float(), dim=1)

    def fingerprint(self) -> str:
        """Sha256 (hex) of weights, settings and normalisation; the weights are hashed once."""
        if self._digest is None:
            self._digest = state_digest(self, [type(self).__name__, self.stride, self.settings()])
        return state_digest(torch.nn.Module(), [self._digest, list(self.mean), list(self.std)])

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._digest = None  # .half() and its like change the weights
        return super()._apply(fn, recurse)


class PatchTransformer(DenseEncoder):
    """Patch tokens of a transformers vision model, as its `last_hidden_state` has them (after the final LayerNorm).

    For SigLIP and SigLIP 2 that is the state after `post_layernorm`, before the attention pooling head, which would
    leave one vector an image; the method was published before them and says nothing of them, so this is our reading.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        mean: RGB = IMAGENET_MEAN,
        std: RGB = IMAGENET_STD,
        *,
        interpolate: bool,
    ) -> None:
        super().__init__(name, model.config.hidden_size, _side(model.config.patch_size), mean, std)
        self.model: Any = model
        self._options: dict[str, Any] = {"interpolate_pos_encoding": True} if interpolate else {}
        self.freeze()

    def settings(self) -> dict[str, Any]:
        """The model's own configuration, as far as it changes the output."""
        return model_settings(self.model.config)

    def project(self, patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        """From the model's last state to the tokens: nothing to do, unless a subclass says so."""
        return patches

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """The last gh * gw states, row by row."""
        grid = (pixels.shape[-2] // self.stride, pixels.shape[-1] // self.stride)
        pixels = pixels.to(self.model.dtype)
        states = self.model(pixel_values=pixels, **self._options).last_hidden_state  # (b, prefix + gh * gw, c)
        patches = self.project(states[:, -grid[0] * grid[1] :])  # (b, gh * gw, d)
        return patches.transpose(1, 2).unflatten(2, grid)  # (b, d, gh, gw)


class ClipVision(PatchTransformer):
    """CLIP's patch tokens in the joint space: `post_layernorm`, then `visual_projection`, made for the class token.

    With `values` they are MaskCLIP's (arXiv 2112.01071): in the last attention layer every patch looks at itself alone,
    so that what it says of itself is not mixed with what the class token gathers.
    """

    text_aligned = True  # the tokens live in the text encoder's space

    def __init__(
        self,
        model: CLIPVisionModelWithProjection,
        name: str,
        mean: RGB = CLIP_MEAN,
        std: RGB = CLIP_STD,
        *,
        values: bool = False,
    ) -> None:
        super().__init__(model, name, mean, std, interpolate=True)
        self.dim = model.visual_projection.out_features
        self.values = values
        if values:
            last: Any = model.vision_model.encoder.layers[-1]
            last.self_attn = _Itself(last.self_attn).train(False)

    def settings(self) -> dict[str, Any]:
        """See the parent."""
        return super().settings() | ({"values": True} if self.values else {})

    def project(self, patches: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        """Apply to every patch what CLIP applies to its class token."""
        return self.model.visual_projection(self.model.vision_model.post_layernorm(patches))


class _Itself(nn.Module):
    """A layer of CLIP's attention in which every token looks at itself alone."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.v_proj, self.out_proj = attention.v_proj, attention.out_proj

    def forward(self, hidden_states: Float[Tensor, "b n c"], **_: Any) -> tuple[Float[Tensor, "b n c"], None]:
        return self.out_proj(self.v_proj(hidden_states)), None


@dataclass(frozen=True)
class Family:
    """How one transformers `model_type` becomes a dense encoder."""

    model: str
    mean: RGB = IMAGENET_MEAN
    std: RGB = IMAGENET_STD
    interpolate: bool = True
    options: dict[str, Any] = field(default_factory=dict)


_VIT = Family("ViTModel", options={"add_pooling_layer": False})
_CLIP = Family("CLIPVisionModelWithProjection", CLIP_MEAN, CLIP_STD)
_SIGLIP = Family("SiglipVisionModel", HALF, HALF)
IMAGE_FAMILIES: dict[str, Family] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "vit": _VIT,
    "vit_mae": _VIT,  # not ViTMAEModel: that one shuffles its tokens even when it masks none
    "deit": Family("DeiTModel", options={"add_pooling_layer": False}),
    "dinov2": Family("Dinov2Model", interpolate=False),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", interpolate=False),
    "dinov3_vit": Family("DINOv3ViTModel", interpolate=False),
}
"""transformers `model_type` -> how to load it."""


def load_image_encoder(
    source: str, name: str, kinds: tuple[str, ...] | None = None, *, values: bool = False
) -> PatchTransformer:
    """A frozen image encoder from a folder or a hub repository in transformers' format.

    Args:
        source: folder or hub id.
        name: the zoo name it is built from; kept as `.name`.
        kinds: the `model_type`s that fit the name; None takes any of `IMAGE_FAMILIES`.
        values: of CLIP, take MaskCLIP's tokens.

    Raises:
        FusionerError: the source cannot be had, is of another kind, or its weights are incomplete.
    """
    folder = locate(source, name)
    config = read_config(folder, name)
    kind = config.model_type
    if kind not in (kinds or IMAGE_FAMILIES):
        known = ", ".join(kinds or IMAGE_FAMILIES)
        raise FusionerError(f"{name}: {folder} holds a model of type {kind!r}, not an image encoder of type {known}")
    family = IMAGE_FAMILIES[kind]
    model = load_pretrained(getattr(transformers, family.model), folder, _vision_config(config), name, **family.options)
    mean, std = read_normalisation(folder) or (family.mean, family.std)
    if isinstance(model, CLIPVisionModelWithProjection):
        return ClipVision(model, name, mean, std, values=values)
    return PatchTransformer(model, name, mean, std, interpolate=family.interpolate)


def _vision_config(config: PretrainedConfig) -> PretrainedConfig:
    """The part of a configuration that the vision model reads."""
    if config.model_type == "vit_mae":
        shared = set(ViTConfig().to_dict()) - {
            "model_type",
            "architectures",
            "transformers_version",
            "pooler_output_size",
        }
        return ViTConfig(**{key: value for key, value in config.to_dict().items() if key in shared})
    vision = getattr(config, "vision_config", config)
    if config.model_type == "clip":
        vision.projection_dim = config.projection_dim  # the towers' own entries are often left at the default
    if vision.model_type == "siglip_vision_model":
        vision.vision_use_head = False  # pools to one vector, which nobody here reads
    return vision


def _side(patch: int | list[int] | tuple[int, int]) -> int:
    if isinstance(patch, int):
        return patch
    if len(set(patch)) != 1:
        raise FusionerError(f"patches of {patch[0]}x{patch[1]} px are not square, which the token grid needs")
    return patch[0]
