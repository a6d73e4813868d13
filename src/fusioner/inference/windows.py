"""Native-resolution inference: overlapping square windows, their logits averaged.

The placement is the official one: windows of side `crop` start at every multiple of `stride`, rows first, until the
image is covered; what a window has beyond the image is filled with `pad`, and its logits there are dropped.
Letters: B images, N windows, K labels, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Origin = tuple[int, int]


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of an image lie.

    Attributes:
        height, width: the image, px.
        crop: side of a window, px; may exceed the image.
        stride: step between windows, px; 0 stands for the official int(crop * 2 / 3).
    """

    height: int
    width: int
    crop: int
    stride: int = 0

    @property
    def origins(self) -> list[Origin]:
        """Top left corner (y, x) of every window, row by row."""
        stride = self.stride or max(1, int(self.crop * 2 / 3))
        rows, columns = (-(-max(0, side - self.crop) // stride) + 1 for side in (self.height, self.width))
        return [(row * stride, column * stride) for row in range(rows) for column in range(columns)]

    def cut(
        self, images: Float[Tensor, "b c h w"], origins: Sequence[Origin], pad: float | Float[Tensor, " c"] = 0.0
    ) -> Float[Tensor, "n b c crop crop"]:
        """The windows at `origins` of every image, filled up on the right and at the bottom with `pad`."""
        b, c = images.shape[:2]
        filling = torch.as_tensor(pad, dtype=images.dtype, device=images.device).reshape(-1, 1, 1)  # (c or 1, 1, 1)
        windows = filling.expand(c, self.crop, self.crop).repeat(len(origins), b, 1, 1, 1)
        for window, (y, x) in zip(windows, origins, strict=True):
            part = images[..., y : y + self.crop, x : x + self.crop]
            window[..., : part.shape[-2], : part.shape[-1]] = part
        return windows


class Canvas:
    """The mean of windows laid over each other, kept as one running sum.

    A window's logits have `side` cells where its pixels are `grid.crop`: with side == crop a cell is a pixel (the
    official way); fewer cells keep the canvas small where labels times pixels would not fit into memory.
    """

    def __init__(self, grid: WindowGrid, side: int) -> None:
        self.grid, self.side = grid, side
        self.size = max(1, self._cells(grid.height)), max(1, self._cells(grid.width))
        self._sum: Tensor | None = None
        self._count = torch.zeros(self.size)

    def add(self, logits: Float[Tensor, "*b side side"], origin: Origin) -> None:
        """Lay one window's logits down at the origin (y, x), px."""
        if self._sum is None:
            self._sum = logits.new_zeros(*logits.shape[:-2], *self.size)
        y, x = self._cells(origin[0]), self._cells(origin[1])
        place = ..., slice(y, y + self.side), slice(x, x + self.side)
        h, w = self._sum[place].shape[-2:]
        self._sum[place] += logits[..., :h, :w]
        self._count[place] += 1

    def mean(self) -> Float[Tensor, "*b h w"]:
        """The average of all windows at every cell; ends this canvas (the sum is divided in place)."""
        if self._sum is None:
            raise ValueError("no window was added")
        return self._sum.div_(self._count.to(self._sum.device))

    def _cells(self, pixels: int) -> int:
        return int(pixels * self.side / self.grid.crop + 0.5)


def sliding_windows(
    image: Float[Tensor, "b c h w"],
    crop: int,
    predict: Callable[[Float[Tensor, "n c crop crop"]], Float[Tensor, "n k crop crop"]],
    *,
    stride: int | None = None,
    pad: float | Float[Tensor, " c"] = 0.0,
    flip: bool = False,
    batch: int = 4,
) -> Float[Tensor, "b k h w"]:
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
