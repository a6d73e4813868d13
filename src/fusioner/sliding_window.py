"""Native-resolution inference: overlapping square windows, their logits averaged.

Two ways. The official one: windows of side `crop` start at every multiple of `stride`, rows first, until the image is
covered; what a window has beyond the image is filled with `pad`, its logits there are dropped, and all windows count
the same. The smooth one: the last windows are pulled back into the image, so that none is filled up where the image is
large enough, and each counts most in its middle and fades towards its sides, so that no seam shows.
Letters: B images, N windows, K labels, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from fusioner.backend import Array, ways

Origin = tuple[int, int]


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of an image lie.

    Attributes:
        height, width: the image, px.
        crop: side of a window, px; may exceed the image.
        stride: step between windows, px; 0 stands for the official int(crop * 2 / 3).
        smooth: the smooth way instead of the official one.
    """

    height: int
    width: int
    crop: int
    stride: int = 0
    smooth: bool = False

    @property
    def rows(self) -> list[int]:
        """y of every row of windows, px."""
        return self._starts(self.height)

    @property
    def columns(self) -> list[int]:
        """x of every column of windows, px."""
        return self._starts(self.width)

    @property
    def origins(self) -> list[Origin]:
        """Top left corner (y, x) of every window, row by row."""
        return [(y, x) for y in self.rows for x in self.columns]

    def _starts(self, side: int) -> list[int]:
        stride, room = self.stride or max(1, int(self.crop * 2 / 3)), max(0, side - self.crop)
        starts = [index * stride for index in range(-(-room // stride) + 1)]
        return [min(start, room) for start in starts] if self.smooth else starts

    def cut(
        self, images: Num[Array, "b c h w"], origins: Sequence[Origin], pad: float | Float[Array, " c"] = 0.0
    ) -> Num[Array, "n b c crop crop"]:
        """The windows at `origins` of every image, filled up on the right and at the bottom with `pad`."""
        windows = ways(images).filled((len(origins), *images.shape[:2], self.crop, self.crop), pad, images)
        for window, (y, x) in zip(windows, origins, strict=True):
            part = images[..., y : y + self.crop, x : x + self.crop]
            window[..., : part.shape[-2], : part.shape[-1]] = part
        return windows


class Canvas:
    """The weighted mean of windows laid over each other, kept as one running sum.

    A window's logits have `side` cells where its pixels are `grid.crop`: with side == crop a cell is a pixel (the
    official way); fewer cells keep the canvas small where labels times pixels would not fit into memory.
    """

    def __init__(self, grid: WindowGrid, side: int) -> None:
        self.grid, self.side = grid, side
        self.size = max(1, self._cells(grid.height)), max(1, self._cells(grid.width))
        self._sum: Array | None = None
        self._weights = self._shares(grid.rows, self.size[0]), self._shares(grid.columns, self.size[1])

    def add(self, logits: Float[Array, "*b side side"], origin: Origin) -> None:
        """Lay one window's logits down at the origin (y, x), px."""
        do = ways(logits)
        if self._sum is None:
            self._sum = do.filled((*logits.shape[:-2], *self.size), 0.0, logits)
        rows, columns = (do.like(share[start], logits) for share, start in zip(self._weights, origin, strict=True))
        y, x = self._cells(origin[0]), self._cells(origin[1])
        h, w = len(rows), len(columns)
        total: Array = self._sum
        total[..., y : y + h, x : x + w] += logits[..., :h, :w] * (rows[:, None] * columns)

    def mean(self) -> Float[Array, "*b h w"]:
        """The average at every cell, once all windows of the grid are down."""
        if self._sum is None:
            raise ValueError("no window was added")
        return self._sum

    def _cells(self, pixels: int) -> int:
        return int(pixels * self.side / self.grid.crop + 0.5)

    def _shares(self, starts: list[int], size: int) -> dict[int, Float[np.ndarray, " cells"]]:
        """Along one axis: what each window, by its start in px, contributes to every cell it has; they add up to 1."""
        weight = np.ones(self.side, np.float32)
        if self.grid.smooth:  # a tent: where two windows overlap, one fades out as the other fades in
            ramp = np.arange(self.side, dtype=np.float32) + np.float32(0.5)
            weight = np.minimum(ramp, ramp[::-1])
        total, places = np.zeros(size, np.float32), {start: self._cells(start) for start in starts}
        for cell in places.values():
            total[cell : cell + self.side] += weight[: size - cell]
        return {start: weight[: size - cell] / total[cell : cell + self.side] for start, cell in places.items()}


def sliding_windows(
    image: Float[Array, "b c h w"],
    crop: int,
    predict: Callable[[Float[Array, "n c crop crop"]], Float[Array, "n k crop crop"]],
    *,
    stride: int | None = None,
    pad: float | Float[Array, " c"] = 0.0,
    flip: bool = False,
    batch: int = 4,
) -> Float[Array, "b k h w"]:
    """Logits of images of any size from a model of one size.

    Args:
        image: what `predict` wants to see, of any height and width, also below `crop`.
        crop: side of the windows, px.
        predict: windows -> logits of their size.
        stride: px between windows; None is int(crop * 2 / 3).
        pad: value beyond the image, one or one a channel: black, that is -mean / std of normalised input.
        flip: average with the logits of the mirrored windows.
        batch: windows of each image given to `predict` at once.
    """
    height, width = image.shape[-2:]
    grid = WindowGrid(height, width, crop, stride or 0)
    canvas = Canvas(grid, crop)
    origins = grid.origins
    for start in range(0, len(origins), batch):
        some = origins[start : start + batch]
        windows = grid.cut(image, some, pad).flatten(0, 1)  # (n * b, c, crop, crop)
        logits = predict(windows)
        if flip:
            logits = (logits + predict(windows.flip(-1)).flip(-1)) / 2
        for part, origin in zip(logits.unflatten(0, (len(some), -1)), some, strict=True):
            canvas.add(part, origin)
    return canvas.mean()
