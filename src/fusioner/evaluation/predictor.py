"""What evaluation asks of a model: encode an image once, then answer any number of prompts about it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusioner.encoders.base import ImageEncoder
from fusioner.inference.segmenter import EncodedImage, Resolution, Segmenter

TokenSource = Callable[[ImageEncoder, Path, int], Tensor]
"""(encoder, image file, resolution) -> tokens (1, D, Gh, Gw) of the squashed image; `FeatureCache.tokens` is one."""


@runtime_checkable
class Predictor(Protocol):
    """Anything that can be evaluated; a Segmenter through `SegmenterPredictor`, a plain function through `Plain`.

    Attributes:
        independent: a label's probabilities do not depend on what else is asked for in the same call.
    """

    independent: bool

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> Any:
        """Do once per image what does not depend on the prompts; `rgb` is what `file` shows (None: made of several)."""
        ...

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """How surely each label is where, at the model's own resolution; above 0 is more likely than not."""
        ...


class Plain:
    """A function (rgb, labels) -> probabilities (K, h, w) of any resolution, as a Predictor."""

    def __init__(self, function: Callable[[np.ndarray, Sequence[str]], Any], independent: bool = False):
        self.function, self.independent = function, independent

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> np.ndarray:
        """The image itself."""
        return rgb

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """Call the function."""
        return torch.logit(torch.as_tensor(self.function(encoded, labels)).float(), eps=1e-6)


class SegmenterPredictor:
    """A Segmenter as a Predictor, with an optional store of tokens.

    Args:
        segmenter: the model with its encoders.
        resolution: "fast" (the whole image once, squashed) or "native" (sliding windows, laid the official way as the
            published protocols have it; never cached).
        tokens: where to take the tokens of a squashed image from instead of encoding it.
    """

    def __init__(self, segmenter: Segmenter, resolution: Resolution = "fast", tokens: TokenSource | None = None):
        self.segmenter = segmenter
        self.resolution: Resolution = resolution
        segmenter.smooth = False
        self.independent = segmenter.model.labels_independent
        self.tokens = tokens if resolution == "fast" else None

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> EncodedImage:
        """Tokens of the image, from the store where there is one."""
        if self.tokens is None or file is None:
            return self.segmenter.encode(rgb, resolution=self.resolution)
        found = self.tokens(self.segmenter.image_encoder, file, self.segmenter.card.resolution)
        return EncodedImage(rgb, found.to(self.segmenter.device).float(), None, file.name)

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """The Segmenter's own."""
        return self.segmenter.own_logits(encoded, labels)
