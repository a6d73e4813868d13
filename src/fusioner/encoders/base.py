"""Encoder interfaces and the base classes of frozen encoders.

Dimension letters: B images, H W pixels, Gh Gw token grid, D channels, N strings, K classes, C hypernyms.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import lcm
from typing import Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

from fusioner.errors import FusionerError

RGB = tuple[float, float, float]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: RGB = (0.5, 0.5, 0.5)
PUBLISHED_NORMALISATION: dict[str, tuple[RGB, RGB]] = {
    "pascal": ((0.4554, 0.4298, 0.3955), (0.1181, 0.1189, 0.1338)),
    "coco": ((0.4650, 0.4357, 0.3973), (0.1152, 0.1153, 0.1352)),
}
"""Mean and std of the official recipe per data set; its checkpoints do not store them."""
TEXT_BATCH = 64  # strings encoded at once; bounds the memory of many labels times templates


class Hypernyms(NamedTuple):
    """WordNet hypernyms of an image encoder's classes.

    Attributes:
        embeddings: unit-length text embeddings of the hypernyms.
        of_class: indices of each class's hypernyms, padded with C.
    """

    embeddings: Float[Tensor, "c d"]
    of_class: Int[Tensor, "k depth"]


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
    kind = ""  # in fingerprints; empty: the name of the class

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

    @property
    def size_step(self) -> int:
        """Pixels whose multiples as sides no encoder resizes."""
        return self.stride  # type: ignore[return-value]

    def hypernyms(self) -> Hypernyms | None:
        return None


def to_grid(patches: Float[Tensor, "b n d"], pixels: Float[Tensor, "b 3 h w"], stride: int) -> Tensor:
    """Return patches in row order, which end a sequence, as a grid (b, d, h // stride, w // stride)."""
    rows, columns = (side // stride for side in pixels.shape[-2:])
    return patches[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


class DenseEncoder(FrozenImageEncoder, ABC):
    """Base of the image encoders: resize, normalise, compute `tokens`, scale them to unit length."""

    def __init__(self, name: str, dim: int, stride: int, mean: RGB, std: RGB) -> None:
        super().__init__()
        self.name, self.dim, self.stride = name, dim, stride
        self.mean, self.std = mean, std

    @abstractmethod
    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Compute tokens of any length from normalised pixels; h and w are multiples of the stride."""

    def settings(self) -> dict[str, Any]:
        """Return the settings that change the tokens, besides weights and normalisation."""
        return {}

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode RGB in [0, 1] into unit-length tokens on a grid of h // stride by w // stride (at least 1 by 1).

        Other sizes than multiples of the stride are resized to the next smaller one (bilinear, no antialiasing).
        """
        return F.normalize(self.unscaled(images), dim=1)

    @torch.no_grad()
    def unscaled(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode as `forward` does, into tokens of any length."""
        size = tuple(max(1, side // self.stride) * self.stride for side in images.shape[-2:])
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=False)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return self.tokens((images - mean) / std).float()

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights, settings and normalisation; weights are hashed once."""
        if self._digest is None:
            self._digest = state_digest(self, [self.kind or type(self).__name__, self.stride, self.settings()])
        return state_digest(nn.Module(), [self._digest, list(self.mean), list(self.std)])


def _shared(name: str) -> Any:
    def read(self: "ConcatEncoder") -> RGB:
        return getattr(self._parts[0], name)

    def assign(self: "ConcatEncoder", value: RGB) -> None:
        if tuple(value) != tuple(read(self)):  # assigning the current value keeps the other encoders' values
            for encoder in self._parts:
                setattr(encoder, name, value)

    return property(read, assign)


class ConcatEncoder(FrozenImageEncoder):
    """Tokens of several image encoders, resampled (bilinear) to the first one's grid and concatenated along d.

    Each encoder's tokens have unit length before and after resampling, so all count equally; the result is scaled to
    unit length again. `dim` is the sum, `name` the names joined by "+". Assigning `mean` or `std` sets them in all.
    """

    mean, std = _shared("mean"), _shared("std")

    def __init__(self, encoders: Sequence[ImageEncoder]) -> None:
        super().__init__()
        if not encoders:
            raise FusionerError("a list of image encoders needs at least one")
        self._parts = tuple(encoders)
        self.encoders = nn.ModuleList(encoder for encoder in encoders if isinstance(encoder, nn.Module))
        self.name = "+".join(encoder.name for encoder in encoders)
        self.dim = sum(encoder.dim for encoder in encoders)
        self.stride = encoders[0].stride
        self.freeze()

    @property
    def parts(self) -> Sequence[ImageEncoder]:
        return self._parts

    @property
    def size_step(self) -> int:
        return lcm(*(part.stride for part in self._parts))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode RGB in [0, 1] into unit-length tokens on the first encoder's grid."""
        first, *others = (encoder(images) for encoder in self._parts)  # each (b, d_i, gh_i, gw_i)
        resampled = [F.normalize(_resample(tokens, first.shape[-2:]), dim=1) for tokens in others]
        return F.normalize(torch.cat([first, *resampled], dim=1), dim=1)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the encoders' fingerprints, in order."""
        return state_digest(nn.Module(), [encoder.fingerprint() for encoder in self._parts])


def _resample(tokens: Float[Tensor, "b d gh gw"], size: torch.Size) -> Float[Tensor, "b d gh2 gw2"]:
    if tokens.shape[-2:] == size:
        return tokens
    return F.interpolate(tokens, size=size, mode="bilinear", align_corners=False)


class TextModel(Frozen, ABC):
    """Base of the text encoders: batch, `tokenize`, `embed`, scale to unit length; texts beyond the context are cut.

    Attributes:
        context: maximum number of tokens of a text.
        padding: "longest" of a batch, or "max_length": the context.
        lowercase: convert texts to lower case first.
        pad: the padding token and its id.
        pooling: how token states become one vector, part of the fingerprint; "" if the model itself does it.
    """

    padding = "longest"
    lowercase = False
    pooling = ""
    name: str
    dim: int
    context: int
    pad: tuple[str, int]

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        """Return padded token ids and their mask (1: text, 0: padding)."""

    @abstractmethod
    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Embed token ids as vectors of any length."""

    @abstractmethod
    def tokenizer_json(self) -> Any:
        """Return the content of tokenizer.json, see `portable_tokenizer`."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the model's settings that change the vectors, besides weights and tokenizer."""

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Encode any number of strings as fp32 unit vectors, in order, on the model's device."""
        batches = [self._encode(texts[start : start + TEXT_BATCH]) for start in range(0, len(texts), TEXT_BATCH)]
        return torch.cat(batches) if batches else torch.empty(0, self.dim, device=self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        ids, mask = self.tokenize([text.lower() for text in texts] if self.lowercase else list(texts))
        return F.normalize(self.embed(ids.to(self._device), mask.to(self._device)).float(), dim=1)

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of weights, tokenizer and pooling; computed once."""
        if self._digest is None:
            settings = [self.kind or type(self).__name__, self.padding, self.context, self.settings()]
            settings += [self.pooling] if self.pooling else []
            self._digest = state_digest(self, [*settings, self.tokenizer_json()])
        return self._digest


def portable_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json without padding and truncation, which are settings of a call."""
    return {key: value for key, value in json.loads(tokenizer.to_str()).items() if key not in ("padding", "truncation")}


def state_digest(module: nn.Module, settings: object) -> str:
    """Return the sha256 (hex) of a module's tensors, in key order, and of JSON-able settings."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
