"""What evaluation asks of a model: encode an image once, then answer any number of prompts about it."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fusioner.features.cache import FeatureCache
from fusioner.options import Mode, check_scales
from fusioner.postprocess import mean_logits
from fusioner.segmenter import EncodedImage, Segmenter


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


@dataclass(frozen=True)
class Look:
    """One way of showing an image to the encoder, and what it said."""

    encoded: EncodedImage
    flipped: bool


class SegmenterPredictor:
    """A Segmenter as a Predictor, with an optional store of tokens.

    Several looks at an image (scales, left and right exchanged) are averaged as logits.

    Args:
        segmenter: the model with its encoders.
        mode: "whole" (the whole image once, resized) or "slide" (sliding windows, laid the official way as the
            published protocols have it; never cached).
        cache: feature cache folder for the tokens of whole images; None: encode at every call.
        flip: look at the mirrored image, too.
        scales: sizes to look at, as multiples of the training size ("whole") or of the image's own ("slide").

    Raises:
        FusionerError: no scale, or one that is not above 0.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        mode: Mode = "whole",
        cache: Path | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
    ):
        self.segmenter = copy.copy(segmenter)  # the caller's keeps its windows
        self.segmenter.smooth = False
        scales = check_scales(scales)
        inner = scales if mode == "whole" else (1.0,)
        self.segmenter.options = replace(segmenter.options, mode=mode, tta_scales=inner)
        self.mode = mode
        self.independent = segmenter.model.labels_independent
        self.caches: list[FeatureCache] = []
        if cache is not None and mode == "whole":
            sides = [self.segmenter.side(scale) for scale in inner]
            self.caches = [FeatureCache(cache, segmenter.image_encoder, side) for side in sides]
        shown = (1.0,) if mode == "whole" else scales
        self.ways = [(scale, mirrored) for scale in shown for mirrored in ((False, True) if flip else (False,))]

    def encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None) -> list[Look]:
        """Tokens of the image in every way it is looked at, from the store where there is one."""
        return [Look(self._encode(rgb, file, *way), way[1]) for way in self.ways]

    def logits(self, encoded: Any, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """The Segmenter's own; of several looks the mean, at the resolution of the finest."""
        looks: list[Look] = encoded
        answers = [self.segmenter.own_logits(look.encoded, labels) for look in looks]
        turned = (logits.flip(-1) if look.flipped else logits for look, logits in zip(looks, answers, strict=True))
        return mean_logits(list(turned))

    def _encode(self, rgb: UInt8[np.ndarray, "h w 3"], file: Path | None, scale: float, mirrored: bool) -> EncodedImage:
        if mirrored or not self.caches or file is None:
            shown = np.ascontiguousarray(rgb[:, ::-1]) if mirrored else rgb
            return self.segmenter.encode(shown, scale=scale)
        device = self.segmenter.device
        first, *more = (cache.tokens(file)[None].to(device).float() for cache in self.caches)
        return self.segmenter.keep(rgb, first, file.name, more)
