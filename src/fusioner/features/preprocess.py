"""From an image file to what an encoder is shown, and to its answer; files are known by what is in them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.data.augment import view
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.image import read_image, resize_square


@torch.no_grad()
def encode(encoder: ImageEncoder, pictures: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d gh gw"]:
    """Tokens in float32 on the encoder's device; on a GPU its arithmetic is bfloat16, as the Segmenter's."""
    device = device_of(encoder)
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        return encoder(pictures.to(device)).float()


def device_of(encoder: ImageEncoder) -> torch.device:
    """Where an encoder's weights are."""
    weights = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
    return next(weights, torch.empty(0)).device


def read_bytes(image: Path) -> bytes:
    """The file of an image as it is; FusionerError when it cannot be read."""
    try:
        return image.read_bytes()
    except OSError as error:
        raise FusionerError(f"cannot read image {image}: {error.strerror or error}") from error


def pictures(image: Path, digest: str, views: Sequence[int], side: int) -> list[Float[Tensor, "3 s s"]]:
    """Views of an image file as an encoder is shown them.

    Raises:
        FusionerError: the file cannot be read, or its sha256 is not `digest` (any more).
    """
    raw = read_bytes(image)
    if image_digest(raw) != digest:
        raise FusionerError(f"image {image} has changed since its features were asked for: run this again")
    rgb = read_image(raw, str(image))
    no_mask = np.broadcast_to(np.uint8(0), rgb.shape[:2])
    return [resize_square(view(rgb, no_mask, number, view_seed(digest))[0], side) for number in views]


def image_digest(raw: bytes) -> str:
    """Sha256 (hex) of an image file's bytes: the image's name in the cache."""
    return hashlib.sha256(raw).hexdigest()


def view_seed(digest: str) -> int:
    """The seed of an image's views: its content alone, so that the same picture has the same views everywhere."""
    return int(digest[:15], 16)
