"""How to segment, whatever computes: reading, encoding, asking, deciding. `segmenter` has torch, `export` does without.

Arrays are NumPy's or torch's, see `arrays`. Letters: N windows (1 when the whole image is one), D channels, Gh Gw token
grid, K labels, h w the network's own resolution, H W pixels.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.backend import Array, ways
from fusioner.encoded_image import EncodedImage, room_for
from fusioner.errors import FusionerError
from fusioner.guided_filter import SIDE, EdgeFilter
from fusioner.image import ImageSource, read_image
from fusioner.label_predictor import Asking
from fusioner.labels import check_labels
from fusioner.postprocess import check_scales, check_threshold, chunks, upsample
from fusioner.segmentation import Looks, Segmentation
from fusioner.sliding_window import Origin, WindowGrid

Resolution = Literal["fast", "native"]
OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with (windows done, windows in all) after every window; what it raises stops the work and comes out."""


class BaseSegmenter(Asking):
    """Names in, masks out.

    `seg(image, labels)` does it all; `seg.set_image(image)` followed by any number of `seg.segment(labels)` encodes
    the image once. Resolution "fast" looks once at the whole image, squashed to the training size; "native" slides
    windows of that size over the image's own pixels.

    Attributes:
        card, embed: see `Asking`.
        stride: pixels per token.
        some: windows encoded at once.
        smooth: lay native windows so that no seam shows; False is the official way, see `inference.windows`.
        refine: move the edges of "fast" masks to edges of the photograph, see `inference.refine`; at first as the card
            says.
        scales: sizes of the squashed picture that "fast" looks at, as multiples of the training size; their logits are
            averaged.
    """

    stride: int
    some = 1
    smooth = True
    refine = False
    scales: Sequence[float] = (1.0,)

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
            raise FusionerError(f"not enough memory for {name}: use fewer labels, a smaller image or 'fast'") from error

    def __call__(
        self,
        image: ImageSource,
        labels: Sequence[str] | str,
        *,
        threshold: float | None = None,
        background: bool = True,
        resolution: Resolution = "fast",
        on_progress: OnProgress | None = None,
    ) -> Segmentation:
        """Find `labels` in `image`; leaves the image of `set_image` alone.

        At native resolution every window is dropped as soon as it is done, so that memory holds any image.

        Args:
            image: anything `read_image` takes: a path, bytes, an open file, a Pillow image, an array.
            labels: names of things, or one string of them separated by commas.
            threshold: probability a pixel needs to take a label, 0..1; None is the model's own.
            background: False gives every pixel a label.
            resolution: "fast" or "native".
            on_progress: see `OnProgress`; "fast" counts as one window.

        Raises:
            FusionerError: bad image, labels, threshold or resolution, or not enough memory.
        """
        clean = check_labels(labels)
        check_threshold(0.5 if threshold is None else threshold)  # before the work, not after it
        if resolution == "fast":
            encoded = self.encode(image, on_progress=on_progress)
            return self.decide(encoded, clean, self.own_logits(encoded, clean), threshold, background)
        rgb, name, grid = self._open(image, resolution)
        with self._computing(name):
            logits = self._lay(self._look(rgb, grid, on_progress), clean, grid)
        return self._decide(rgb, name, clean, logits, threshold, background, resolution)

    def set_image(
        self, image: ImageSource, resolution: Resolution = "fast", on_progress: OnProgress | None = None
    ) -> Self:
        """Encode `image` once and keep it for `segment`."""
        self._current = self.encode(image, resolution, on_progress)
        return self

    def segment(
        self, labels: Sequence[str] | str, *, threshold: float | None = None, background: bool = True
    ) -> Segmentation:
        """Find `labels` in the image of `set_image`; arguments and errors as in calling the segmenter."""
        if self._current is None:
            raise FusionerError("there is no image yet: call set_image first")
        clean = check_labels(labels)
        return self.decide(self._current, clean, self.own_logits(self._current, clean), threshold, background)

    def looking(self, scales: Sequence[float] = (1.0,), refine: bool | None = None) -> Self:
        """Set `scales` and `refine`, which None leaves as it is.

        Raises:
            FusionerError: there is no scale, or one is not above 0 and at most 16.
        """
        self.scales, self.refine = check_scales(scales), self.refine if refine is None else refine
        return self

    def looks(self, resolution: Resolution) -> Looks:
        """How an image is looked at there."""
        return Looks("fast", tuple(self.scales), self.refine) if resolution == "fast" else Looks(resolution)

    def encode(
        self,
        image: ImageSource,
        resolution: Resolution = "fast",
        on_progress: OnProgress | None = None,
        scale: float = 1.0,
    ) -> EncodedImage:
        """Read and encode an image; arguments and errors as in calling the segmenter.

        The tokens of all windows are kept; native images of more than about 30 megapixels (with the embedded model)
        are refused for it, which calling the segmenter takes. `scale` enlarges (or shrinks) what the encoder is shown:
        the side of the squashed picture, or the picture that the windows slide over.
        """
        rgb, name, grid = self._open(image, resolution, scale)
        with self._computing(name):
            if resolution == "fast":
                first, *more = (self._tokens(self._squash(rgb, self.side(scale * own))[None]) for own in self.scales)
                if on_progress:
                    on_progress(1, 1)
                return self.keep(rgb, first, name, more)
            kept, done = None, 0
            for tokens, origins in self._look(rgb, grid, on_progress):
                kept = room_for(tokens, len(grid.origins), name) if kept is None else kept
                kept[done : done + len(origins)] = tokens
                done += len(origins)
            return EncodedImage(rgb, kept, grid, name)

    def side(self, scale: float = 1.0) -> int:
        """Side in pixels of the squashed picture: the training size, scaled to the nearest multiple of the stride."""
        cells = max(1, round(self.card.resolution * scale / self.stride))
        return self.card.resolution if scale == 1.0 else cells * self.stride

    def encode_many(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[EncodedImage]:
        """Encode upright RGB images of any sizes in one forward, each squashed as a whole ("fast")."""
        with self._computing(f"{len(images)} images"):
            squashed = [[self._squash(rgb, self.side(own)) for rgb in images] for own in self.scales]
            tokens = [self._tokens(ways(pictures[0]).stack(pictures)) for pictures in squashed]
        copy = ways(tokens[0]).copy
        each = ([copy(own[i : i + 1]) for own in tokens] for i in range(len(images)))
        return [self.keep(rgb, first, "image", more) for rgb, (first, *more) in zip(images, each, strict=True)]

    def keep(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        tokens: Float[Array, "1 d gh gw"],
        name: str,
        more: Sequence[Float[Array, "1 d gh2 gw2"]] = (),
    ) -> EncodedImage:
        """An image with the tokens of its squashed picture, and of other sizes of it, ready to be asked."""
        edges = EdgeFilter(self._squash(rgb, SIDE)) if self.refine else None
        return EncodedImage(rgb, tokens, None, name, edges, tuple(more))

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
        threshold: float | None = None,
        background: bool = True,
    ) -> Segmentation:
        """The answer, from `own_logits` of those labels; threshold and background as in calling the segmenter."""
        resolution = "fast" if encoded.grid is None else "native"
        return self._decide(encoded.image, encoded.name, labels, logits, threshold, background, resolution)

    def _decide(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        name: str,
        labels: Sequence[str],
        logits: Float[Array, "k h w"],
        threshold: float | None,
        background: bool,
        resolution: Resolution,
    ) -> Segmentation:
        with self._computing(name):
            return Segmentation.from_logits(
                rgb,
                labels,
                logits,
                threshold=self.card.threshold if threshold is None else threshold,
                background=background,
                name=name,
                looks=self.looks(resolution),
            )

    def _open(
        self, image: ImageSource, resolution: Resolution, scale: float = 1.0
    ) -> tuple[UInt8[np.ndarray, "h w 3"], str, WindowGrid]:
        if resolution not in get_args(Resolution):
            raise FusionerError(f"the resolution is 'fast' or 'native', not {resolution!r}")
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
