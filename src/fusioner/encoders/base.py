"""Encoder interfaces and the base classes of frozen encoders.

Dimension letters: B images, H W pixels, Gh Gw token grid, D channels, N strings, K classes, C hypernyms.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

RGB = tuple[float, float, float]


class Hypernyms(NamedTuple):
    """WordNet hypernyms of an image encoder's classes.

    Attributes:
        embeddings: unit-length text embeddings of the hypernyms.
        of_class: indices of each class's hypernyms, padded with C.
    """

    embeddings: Float[Tensor, "c d"]
    of_class: Int[Tensor, "k depth"]


@runtime_checkable
class ImageEncoder(Protocol):
    """Frozen image encoder: RGB to dense unit-length tokens.

    Attributes:
        name: registry name; building it again gives the same encoder.
        dim: token width D.
        stride: pixels per token, in both directions.
        mean, std: per-channel normalisation of RGB in [0, 1]; applied by the encoder, assignable.
        parts: the encoders whose tokens are concatenated; the encoder itself if there is only one.
        image_size: side in pixels of the images that it was trained on.
        text_aligned: whether tokens and the embeddings of the matching text encoder share a space.
        class_embeddings: text embeddings of the D classes whose posterior a token is; None for other encoders.
    """

    name: str
    dim: int
    stride: int
    mean: RGB
    std: RGB
    image_size: int
    text_aligned: bool
    class_embeddings: Float[Tensor, "k d"] | None

    @property
    def parts(self) -> "Sequence[ImageEncoder]": ...

    def hypernyms(self) -> Hypernyms | None:
        """Load the hypernyms of the classes; None for encoders without classes."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode RGB in [0, 1] of any size into tokens of unit length along d; gh = h // stride, gw = w // stride."""
        ...

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights and preprocessing; equal fingerprints mean equal tokens."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Frozen text encoder: strings to unit-length vectors.

    Attributes:
        name: registry name.
        dim: vector width D.
    """

    name: str
    dim: int

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Encode any number of strings, in order."""
        ...

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights and tokenizer."""
        ...


class Frozen(nn.Module):
    """Module without gradients that stays in eval mode; subclasses call `freeze()` at the end of `__init__`."""

    _digest: str | None = None  # of the weights, computed once

    def freeze(self) -> Self:
        """Disable gradients and enter eval mode."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, also when a parent module enters training mode."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._digest = None  # .half() and others change the weights
        return super()._apply(fn, recurse)


class FrozenImageEncoder(Frozen):
    """Defaults of `ImageEncoder` for an encoder that is neither concatenated nor related to text."""

    text_aligned = False
    image_size = 224  # side in pixels of the images it was trained on
    class_embeddings: Any

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_embeddings", None, persistent=False)  # no token depends on them

    @property
    def parts(self) -> Sequence[ImageEncoder]:
        return (self,)  # type: ignore[return-value]

    def hypernyms(self) -> Hypernyms | None:
        return None


def state_digest(module: nn.Module, settings: object) -> str:
    """Return the sha256 (hex) of a module's tensors, in key order, and of JSON-able settings."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
