"""Pairs of encoders that segment without training: their names, and the settings of the published methods."""

from typing import TYPE_CHECKING, NamedTuple

from fusioner.encoders.registry import (
    PROXY,
    build_image_encoder,
    build_text_encoder,
    matching_text_encoder,
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
"""What SCLIP and NACLIP count as background on PASCAL VOC and COCO-Object."""
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
    if image_encoder.startswith(PROXY):
        return Protocol(336, 336, 112)
    if image_encoder.startswith("clearclip-"):
        return Protocol(448, 448, 224, 50.0)
    return Protocol(round(1.5 * image_size), image_size, image_size // 2)


def build_pair(image_encoder: str, text_encoder: str | None) -> "tuple[ImageEncoder, TextEncoder]":
    """Build encoders whose tokens and embeddings share a space.

    Args:
        image_encoder: name; of a pair A+B, one is aligned with text and the other gives the attention (ProxyCLIP).
        text_encoder: name; None: that of the same model.

    Raises:
        FusionerError: unknown names, or encoders without a shared space; says which text encoder belongs.
    """
    parts = split_list(image_encoder.removeprefix(PROXY))
    if len(parts) == 2 and matching_text_encoder(parts[0]) is None:  # the aligned one first
        parts.reverse()
    text_name = text_encoder or matching_text_encoder(parts[0])
    problem = space_mismatch(parts[0], text_name) if text_name else ""  # before any download
    if not problem:
        image = build_image_encoder(parts[0] if len(parts) == 1 else PROXY + "+".join(parts))
        if text_name is None or not image.text_aligned:
            raise FusionerError(
                f"{parts[0]} does not share a space with a text encoder, which segmenting without training needs: "
                "name an aligned encoder such as clip-vit-b16 or effnet-lite2-conse, or train with `fusioner train`"
            )
        text = build_text_encoder(text_name)
        if text.dim == image.dim:
            return image, text
        problem = f"its tokens have width {image.dim}, not {text.dim}: name the text encoder of the same model"
    raise FusionerError(f"{parts[0]} and {text_name} do not share a space: {problem}")
