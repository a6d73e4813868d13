"""Sliding-window inference at full resolution: overlapping square windows, their logits averaged.

Layouts. Official: windows of side `crop` start at every multiple of `stride`, row by row, until the image is
covered; parts beyond the image are padded with black, their logits are dropped, and all windows have the same weight.
Smooth: the last windows are moved back into the image, so that none is padded if the image is large enough, and the
weight of a window decreases from its centre to its sides, so that no seam shows. Even: as smooth, with equal weights.
Letters: N windows, K labels, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

Origin = tuple[int, int]


def window_stride(crop: int) -> int:
    """Return the official step between windows of side `crop`, px."""
    return max(1, int(crop * 2 / 3))


@dataclass(frozen=True)
class WindowGrid:
    """Positions of the windows of an image.

    Attributes:
        height, width: of the image, px.
        crop: side of a window, px; may exceed the image.
        stride: step between windows, px; 0 stands for `window_stride(crop)`.
        smooth: the smooth layout instead of the official one.
        even: with `smooth`, give all windows the same weight.
    """

    height: int
    width: int
    crop: int
    stride: int = 0
    smooth: bool = False
    even: bool = False

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
        stride, free = self.stride or window_stride(self.crop), max(0, side - self.crop)
        starts = [index * stride for index in range(-(-free // stride) + 1)]
        return [min(start, free) for start in starts] if self.smooth else starts

    def cut(self, image: Num[np.ndarray, "h w c"], origins: Sequence[Origin]) -> Num[np.ndarray, "n crop crop c"]:
        """Return the windows at `origins`, padded with zeros on the right and at the bottom."""
        windows = np.zeros((len(origins), self.crop, self.crop, image.shape[2]), image.dtype)
        for window, (y, x) in zip(windows, origins, strict=True):
            part = image[y : y + self.crop, x : x + self.crop]
            window[: part.shape[0], : part.shape[1]] = part
        return windows


class Canvas:
    """The weighted mean of overlapping windows, stored as one running sum.

    A window's logits have `side` cells for its `grid.crop` pixels: with side == crop a cell is a pixel (the official
    layout); fewer cells keep the canvas small if labels times pixels would not fit into memory.
    """

    def __init__(self, grid: WindowGrid, side: int) -> None:
        self.grid, self.side = grid, side
        self.size = max(1, self._cells(grid.height)), max(1, self._cells(grid.width))
        self._sum: Float[np.ndarray, "*b h w"] | None = None
        self._weights = self._window_weights(grid.rows, self.size[0]), self._window_weights(grid.columns, self.size[1])

    def add(self, logits: Float[np.ndarray, "*b side side"], origin: Origin) -> None:
        """Add the logits of the window at `origin` (y, x), px."""
        if self._sum is None:
            self._sum = np.zeros((*logits.shape[:-2], *self.size), logits.dtype)
        rows, columns = self._weights[0][origin[0]], self._weights[1][origin[1]]
        y, x = self._cells(origin[0]), self._cells(origin[1])
        h, w = len(rows), len(columns)
        self._sum[..., y : y + h, x : x + w] += logits[..., :h, :w] * (rows[:, None] * columns)

    def mean(self) -> Float[np.ndarray, "*b h w"]:
        """Return the mean, once all windows of the grid are added."""
        if self._sum is None:
            raise ValueError("no window was added")
        return self._sum

    def _cells(self, pixels: int) -> int:
        return int(pixels * self.side / self.grid.crop + 0.5)

    def _window_weights(self, starts: list[int], size: int) -> dict[int, Float[np.ndarray, " _"]]:
        """Return along one axis the weights of each window (key: its start, px) per cell; they sum to 1."""
        weight = np.ones(self.side, np.float32)
        if self.grid.smooth and not self.grid.even:
            # A tent: where two windows overlap, one fades out as the other fades in.
            ramp = np.arange(self.side, dtype=np.float32) + np.float32(0.5)
            weight = np.minimum(ramp, ramp[::-1])
        total, cells = np.zeros(size, np.float32), {start: self._cells(start) for start in starts}
        for cell in cells.values():
            total[cell : cell + self.side] += weight[: size - cell]
        return {start: weight[: size - cell] / total[cell : cell + self.side] for start, cell in cells.items()}
