"""The interface that evaluation needs of a model: encode an image once, then predict any number of prompts."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusioner.features.cache import FeatureCache
from fusioner.options import Mode, check_scales
from fusioner.postprocess import mean_logits
from fusioner.segmenter import EncodedImage, Segmenter


class Predictor(Protocol):
    """Anything that can be evaluated; see `SegmenterPredictor` and `FunctionPredictor`."""

    independent: bool  # a label's logits do not depend on the other labels of the same call

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> Any:
        """Compute what does not depend on the prompts; `file` holds `rgb` (None: composed of several images)."""
        ...

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """Return the logits of each label at the model's own resolution."""
        ...


class FunctionPredictor:
    """A function (rgb, labels) -> probabilities (K, h, w) of any resolution, as a `Predictor`."""

    def __init__(self, function: Callable[[np.ndarray, Sequence[str]], Any], independent: bool = False) -> None:
        self.function, self.independent = function, independent

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> np.ndarray:
        """Return the image itself."""
        return rgb

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """Call the function."""
        return torch.logit(torch.as_tensor(self.function(encoded, labels)).float(), eps=1e-6)


class EncodedView(NamedTuple):
    """An encoded scale of an image, possibly flipped."""

    encoded: EncodedImage
    flipped: bool


class SegmenterPredictor:
    """A `Segmenter` as a `Predictor`, with test-time augmentation (logits are averaged) and an optional token cache.

    Args:
        mode: "whole" (the whole image once, resized) or "slide" (sliding windows, placed as in the official code; never
            cached).
        cache: feature cache folder for the tokens of whole images; None: encode at every call.
        flip: average with the flipped image.
        scales: sizes to average, as multiples of the training size ("whole") or of the image's own ("slide").
    """

    def __init__(
        self,
        segmenter: Segmenter,
        mode: Mode = "whole",
        cache: Path | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ):
        self.segmenter = copy.copy(segmenter)  # leaves the caller's as it is
        self.segmenter.overlap_blending = False
        scales, single = check_scales(scales), (1.0,)
        outer, inner = (scales, single) if mode == "slide" else (single, scales)
        self.segmenter.options = replace(segmenter.options, mode=mode, tta_scales=inner)
        self.independent = segmenter.labels_independent
        sides = [self.segmenter.side(scale) for scale in inner] if cache is not None and mode == "whole" else []
        self.caches = [FeatureCache(cache or "", segmenter.image_encoder, side) for side in sides]
        self.augmentations = [(scale, flipped) for scale in outer for flipped in ((False, True) if flip else (False,))]

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> list[EncodedView]:
        """Encode all scales and flips of an image; what is not flipped is read from the cache."""
        views = []
        for scale, flipped in self.augmentations:
            if self.caches and file is not None and not flipped:
                tokens = [cache.tokens(file)[None].float().numpy() for cache in self.caches]
                encoded = self.segmenter.wrap_tokens(rgb, tokens, name=file.name)
            else:
                encoded = self.segmenter.encode(np.ascontiguousarray(rgb[:, ::-1]) if flipped else rgb, scale=scale)
            views.append(EncodedView(encoded, flipped))
        return views

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """Return the mean logits of all scales and flips, at the resolution of the finest."""
        views: list[EncodedView] = encoded
        logits = [self.segmenter.low_res_logits(view.encoded, labels) for view in views]
        unflipped = [plane[..., ::-1] if view.flipped else plane for view, plane in zip(views, logits, strict=True)]
        return torch.from_numpy(np.ascontiguousarray(mean_logits(unflipped)))
