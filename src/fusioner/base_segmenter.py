"""How to segment, whatever computes: reading, encoding, asking, deciding. `segmenter` has torch, `export` does without.

Arrays are NumPy's or torch's, see `arrays`. Letters: N windows (1 when the whole image is one), D channels, Gh Gw token
grid, K labels, h w the network's own resolution, H W pixels.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.backend import Array, ways
from fusioner.encoded_image import EncodedImage, room_for
from fusioner.errors import FusionerError
from fusioner.guided_filter import SIDE, EdgeFilter
from fusioner.image import ImageSource, read_image
from fusioner.label_predictor import Asking
from fusioner.labels import check_labels
from fusioner.options import DEFAULT_OPTIONS, InferenceOptions
from fusioner.postprocess import chunks, upsample
from fusioner.segmentation import Segmentation
from fusioner.sliding_window import Origin, WindowGrid

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with (windows done, windows in all) after every window; what it raises stops the work and comes out."""


class BaseSegmenter(Asking):
    """Names in, masks out.

    `seg(image, labels)` does it all; `seg.set_image(image)` followed by any number of `seg.segment(labels)` encodes
    the image once. Mode "whole" looks once at the whole image, squashed to the training size; "slide" slides
    windows of that size over the image's own pixels.

    Attributes:
        card, embed: see `Asking`.
        stride: pixels per token.
        some: windows encoded at once.
        smooth: lay native windows so that no seam shows; False is the official way, see `inference.windows`.
        options: defaults of every call.
    """

    stride: int
    some = 1
    smooth = True
    options = DEFAULT_OPTIONS

    def __init__(self) -> None:
        self._current: EncodedImage | None = None

    @abstractmethod
    def _squash(self, rgb: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Array, "3 side side"]:
        """The whole picture at `side` by `side` pixels, in [0, 1]."""

    @abstractmethod
    def _pixels(self, rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[Array, "1 3 h2 w2"]:
        """The picture at that size, channels first."""

    @abstractmethod
    def _tokens(self, images: Float[Array, "n 3 h w"]) -> Float[Array, "n d gh gw"]:
        """Of the frozen encoder."""

    @contextmanager
    def _computing(self, name: str) -> Iterator[None]:
        """Around all that computes; too little memory becomes a FusionerError that names the image."""
        try:
            yield
        except Exception as error:
            lack = ("allocate memory", "out of memory")
            if not isinstance(error, MemoryError) and not any(words in str(error) for words in lack):
                raise
            raise FusionerError(
                f"not enough memory for {name}: use fewer labels, a smaller image or 'whole'"
            ) from error

    def __call__(
        self,
        image: ImageSource,
        labels: Sequence[str] | str,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Segmentation:
        """Find `labels` in `image`; leaves the image of `set_image` alone.

        At native resolution every window is dropped as soon as it is done, so that memory holds any image.

        Args:
            image: anything `read_image` takes: a path, bytes, an open file, a Pillow image, an array.
            labels: names of things, or one string of them separated by commas.
            options: by default those of the segmenter.
            changes: single options, as in `mode="slide"`; see `InferenceOptions`.
            on_progress: see `OnProgress`; "whole" counts as one window.

        Raises:
            FusionerError: bad image, labels, threshold or resolution, or not enough memory.
        """
        clean = check_labels(labels)
        options = self.resolve(options, **changes)  # before the work, not after it
        if options.mode == "whole":
            encoded = self.encode(image, options, on_progress=on_progress)
            return self.decide(encoded, clean, self.own_logits(encoded, clean), options)
        rgb, name, grid = self._open(image)
        with self._computing(name):
            logits = self._lay(self._look(rgb, grid, on_progress), clean, grid)
        return self._decide(rgb, name, clean, logits, options)

    def set_image(
        self,
        image: ImageSource,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Self:
        """Encode `image` once and keep it for `segment`."""
        self._current = self.encode(image, options, on_progress=on_progress, **changes)
        return self

    def segment(self, labels: Sequence[str] | str, **changes: Any) -> Segmentation:
        """Find `labels` in the image of `set_image`; arguments and errors as in calling the segmenter."""
        if self._current is None:
            raise FusionerError("there is no image yet: call set_image first")
        clean = check_labels(labels)
        options = replace(self._current.options, **changes)
        return self.decide(self._current, clean, self.own_logits(self._current, clean), options)

    def resolve(self, options: InferenceOptions | None = None, **changes: Any) -> InferenceOptions:
        """Return the options (default: the segmenter's) with `changes`, completed by the card's values.

        Mode slide has neither scales nor a guided filter.
        """
        options = replace(options or self.options, **changes)
        filtered = self.card.refine if options.guided_filter is None else options.guided_filter
        threshold = self.card.threshold if options.threshold is None else options.threshold
        if options.mode == "slide":
            return replace(options, tta_scales=(1.0,), guided_filter=False, threshold=threshold)
        return replace(options, guided_filter=filtered, threshold=threshold)

    def encode(
        self,
        image: ImageSource,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        scale: float = 1.0,
        **changes: Any,
    ) -> EncodedImage:
        """Read and encode an image; arguments and errors as in calling the segmenter.

        The tokens of all windows are kept; native images of more than about 30 megapixels (with the embedded model)
        are refused for it, which calling the segmenter takes. `scale` enlarges (or shrinks) what the encoder is shown:
        the side of the squashed picture, or the picture that the windows slide over.
        """
        options = self.resolve(options, **changes)
        rgb, name, grid = self._open(image, scale)
        with self._computing(name):
            if options.mode == "whole":
                sides = [self.side(scale * own) for own in options.tta_scales]
                first, *more = (self._tokens(self._squash(rgb, side)[None]) for side in sides)
                if on_progress:
                    on_progress(1, 1)
                return self.keep(rgb, first, name, more, options)
            kept, done = None, 0
            for tokens, origins in self._look(rgb, grid, on_progress):
                kept = room_for(tokens, len(grid.origins), name) if kept is None else kept
                kept[done : done + len(origins)] = tokens
                done += len(origins)
            return EncodedImage(rgb, kept, grid, name, options)

    def side(self, scale: float = 1.0) -> int:
        """Side in pixels of the squashed picture: the training size, scaled to the nearest multiple of the stride."""
        cells = max(1, round(self.card.resolution * scale / self.stride))
        return self.card.resolution if scale == 1.0 else cells * self.stride

    def encode_many(
        self, images: Sequence[UInt8[np.ndarray, "h w 3"]], options: InferenceOptions | None = None
    ) -> list[EncodedImage]:
        """Encode upright RGB images of any sizes in one forward, each squashed as a whole ("whole")."""
        options = self.resolve(options)
        with self._computing(f"{len(images)} images"):
            squashed = [[self._squash(rgb, self.side(own)) for rgb in images] for own in options.tta_scales]
            tokens = [self._tokens(ways(pictures[0]).stack(pictures)) for pictures in squashed]
        copy = ways(tokens[0]).copy
        each = ([copy(own[i : i + 1]) for own in tokens] for i in range(len(images)))
        return [self.keep(rgb, first, "image", more, options) for rgb, (first, *more) in zip(images, each, strict=True)]

    def keep(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        tokens: Float[Array, "1 d gh gw"],
        name: str,
        more: Sequence[Float[Array, "1 d gh2 gw2"]] = (),
        options: InferenceOptions | None = None,
    ) -> EncodedImage:
        """An image with the tokens of its squashed picture, and of other sizes of it, ready to be asked."""
        options = self.resolve(options)
        edges = EdgeFilter(self._squash(rgb, SIDE)) if options.guided_filter else None
        return EncodedImage(rgb, tokens, None, name, options, edges, tuple(more))

    def logits(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[Array, "k H W"]:
        """Logits of every label at `size` (height, width), by default the image's own; all at once in memory."""
        return upsample(self.own_logits(encoded, labels), size or encoded.size)

    def probabilities(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[Array, "k H W"]:
        """Sigmoid of `logits`, 0..1; labels do not exclude each other, so they need not sum to 1."""
        logits = self.own_logits(encoded, labels)
        return ways(logits).join(chunks(logits, size or encoded.size), 0)

    def own_logits(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[Array, "k h w"]:
        """Logits at the network's own resolution (fast), or averaged over the windows (native: the image's own size,
        less where labels times pixels exceed `CANVAS`).

        Raises:
            FusionerError: not enough memory, or the network's answer is not finite (a broken checkpoint).
        """
        with self._computing(encoded.name):
            if encoded.grid is not None:
                return self._lay([(encoded.tokens, encoded.grid.origins)], labels, encoded.grid)
            if not self.labels_independent:
                return self._ask(encoded, labels)
            return encoded.answer(labels, lambda new: self._ask(encoded, new))

    def decide(
        self,
        encoded: EncodedImage,
        labels: Sequence[str],
        logits: Float[Array, "k h w"],
        options: InferenceOptions | None = None,
    ) -> Segmentation:
        """The answer, from `own_logits` of those labels; threshold and background are those of `options`."""
        options = self.resolve(options)
        how = replace(encoded.options, threshold=options.threshold, background=options.background)
        return self._decide(encoded.image, encoded.name, labels, logits, how)

    def _decide(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        name: str,
        labels: Sequence[str],
        logits: Float[Array, "k h w"],
        options: InferenceOptions,
    ) -> Segmentation:
        with self._computing(name):
            return Segmentation.from_logits(rgb, labels, logits, options, name=name)

    def _open(self, image: ImageSource, scale: float = 1.0) -> tuple[UInt8[np.ndarray, "h w 3"], str, WindowGrid]:
        rgb, name = read_image(image), Path(image).name if isinstance(image, str | Path) else "image"
        height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
        return rgb, name, WindowGrid(height, width, self.card.resolution, smooth=self.smooth)

    def _look(
        self, rgb: UInt8[np.ndarray, "h w 3"], grid: WindowGrid, on_progress: OnProgress | None
    ) -> Iterator[tuple[Float[Array, "n d gh gw"], list[Origin]]]:
        """Tokens of some windows at a time, with their origins; progress is told once the caller wants the next."""
        pixels, origins = self._pixels(rgb, (grid.height, grid.width)), grid.origins
        for start in range(0, len(origins), self.some):
            here = origins[start : start + self.some]
            yield self._tokens(ways(pixels).single(grid.cut(pixels, here)[:, 0]) / 255), here
            if on_progress:
                on_progress(start + len(here), len(origins))
