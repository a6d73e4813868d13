"""Pairs of encoders that segment without training: their names, and the settings of the published methods."""

from typing import TYPE_CHECKING, NamedTuple

from fusioner.encoders.registry import (
    PROXY,
    build_image_encoder,
    build_text_encoder,
    full_names,
    matching_text_encoder,
    method_of,
    space_mismatch,
    split_list,
)
from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.encoders.base import ImageEncoder, TextEncoder

BACKGROUND_NAMES = (
    "sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands", "desk", "bed", "building",
    "cloud", "lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair", "floor", "hill", "rail",
    "fence",
)  # fmt: skip
"""Background names of SCLIP and NACLIP on PASCAL VOC and COCO-Object."""
THRESHOLD = 0.1
"""Probability below which SCLIP and NACLIP leave a pixel to the background, beside the names above."""


class Protocol(NamedTuple):
    """How a method is applied: shorter side of the image, side and stride of the windows (px), scale of the cosines."""

    short_side: int
    window: int
    stride: int
    scale: float = 40.0


def published_protocol(image_encoder: str, image_size: int) -> Protocol:
    """Return the protocol of a method's public code; for others SCLIP's, with windows of the training size."""
    method = method_of(image_encoder)
    if method == "proxyclip":
        return Protocol(336, 336, 112)
    if method == "clearclip":
        return Protocol(448, 448, 224, 50.0)
    return Protocol(round(1.5 * image_size), image_size, image_size // 2)


def resolve_pair(image_encoder: str, text_encoder: str | None) -> tuple[str, str]:
    """Return the full names of a pair: of A+B, "proxyclip:" and the aligned encoder first; loads nothing.

    Raises:
        FusionerError: unknown names, or encoders without a shared space, by their names.
    """
    parts = split_list(image_encoder.removeprefix(PROXY))
    if len(parts) == 2 and matching_text_encoder(parts[0]) is None:
        parts.reverse()
    if parts[0].startswith("siglip2-"):  # whose aligned tokens are these
        parts[0] = f"maskclip:{parts[0]}"
    name = parts[0] if len(parts) == 1 else PROXY + "+".join(parts)
    text_name = text_encoder or matching_text_encoder(parts[0])
    image, text = full_names(name, text_name or "minilm-embedded")
    if text_name is None:
        raise _not_aligned(parts[0])
    if problem := space_mismatch(parts[0], text_name):
        raise FusionerError(f"{parts[0]} and {text_name} do not share a space: {problem}")
    return image, text


def build_pair(image_encoder: str, text_encoder: str | None) -> "tuple[ImageEncoder, TextEncoder]":
    """Build encoders whose tokens and embeddings share a space.

    Args:
        image_encoder: name; of a pair A+B, one is aligned with text and the other gives the attention (ProxyCLIP).
        text_encoder: name; None: that of the same model.

    Raises:
        FusionerError: unknown names, or encoders without a shared space; says which text encoder belongs.
    """
    name, text_name = resolve_pair(image_encoder, text_encoder)
    image = build_image_encoder(name)
    if not image.text_aligned:
        raise _not_aligned(name)
    text = build_text_encoder(text_name)
    if text.dim != image.dim:
        raise FusionerError(
            f"{name} and {text_name} do not share a space: the tokens have width {image.dim}, the embeddings "
            f"{text.dim}: name the text encoder of the same model"
        )
    return image, text


def _not_aligned(name: str) -> FusionerError:
    return FusionerError(
        f"{name} does not share a space with a text encoder, which segmenting without training needs: name an "
        "aligned encoder such as clip-vit-b16 or effnet-lite2-conse, or train with `fusioner train`"
    )
