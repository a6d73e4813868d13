"""What the decision needs of torch; `plain` has the same functions for NumPy. Letters as in `decide`."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Int, Shaped
from torch import Tensor

where = torch.where


def blank(shape: tuple[int, int], value: float, like: Tensor) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w"]]:
    """No label yet, and what a label has to beat, beside the logits that it will be made of."""
    return torch.zeros(shape, dtype=torch.int64, device=like.device), torch.full(shape, value, device=like.device)


def first_best(planes: Float[Tensor, "k h w"]) -> tuple[Float[Tensor, "h w"], Int[Tensor, "h w"]]:
    """The largest over the labels and its index, the first of equals."""
    value, index = planes.max(dim=0)
    return value, index


def take(numbers: Int[np.ndarray, " n"], index: Int[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """The numbers at `index`."""
    return torch.from_numpy(numbers).to(index.device)[index]


def squares(planes: Float[Tensor, "k h w"]) -> tuple[Float[Tensor, "k h2 w2"], Float[Tensor, "k h2 w2"]]:
    """Least and most of every four neighbouring cells."""
    square = min(2, planes.shape[1]), min(2, planes.shape[2])
    return -F.max_pool2d(-planes, square, stride=1), F.max_pool2d(planes, square, stride=1)


def top(planes: Float[Tensor, "k h w"]) -> Float[Tensor, "h w"]:
    """The largest over the labels."""
    return planes.amax(0)


def anywhere(flags: Bool[Tensor, "k h w"]) -> Bool[np.ndarray, " k"]:
    """For each label whether it has a true cell."""
    return flags.flatten(1).any(1).cpu().numpy()


def upsample(planes: Float[Tensor, "k h w"], size: tuple[int, int]) -> Float[Tensor, "k H W"]:
    """Bilinear, pixel centres at half coordinates; always a tensor of its own."""
    if tuple(planes.shape[-2:]) == tuple(size):
        return planes.clone()
    return F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0]


def upsample_rows(
    planes: Float[Tensor, "k h w"], labels: Int[np.ndarray, " n"], size: tuple[int, int], rows: slice
) -> Float[Tensor, "n rows W"]:
    """`upsample` of some labels, but for its rounding, in some rows only."""
    height, width = planes.shape[-2:]
    chosen = torch.from_numpy(labels).to(planes.device)
    if height == size[0]:
        some = planes[chosen, rows]
    else:
        y = (torch.arange(rows.start, rows.stop, device=planes.device) + 0.5) * (height / size[0]) - 0.5
        y = y.clamp_(0, height - 1)
        above = y.long()
        below = (above + 1).clamp_(max=height - 1)
        some = torch.lerp(planes[chosen[:, None], above], planes[chosen[:, None], below], (y - above)[:, None])
    if width == size[1]:
        return some
    return F.interpolate(some[None], size=some.shape[1:2] + size[1:], mode="bilinear", align_corners=False)[0]


def sigmoid(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In place."""
    return values.sigmoid_()


def home(array: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """In this machine's memory."""
    return array.cpu()


def half(array: Float[Tensor, "..."]) -> Float16[np.ndarray, "..."]:
    """In half precision, as a NumPy array."""
    return array.half().cpu().numpy()


def single(array: Shaped[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In single precision."""
    return array.float()


def copy(array: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Of its own memory."""
    return array.clone()


def filled(
    shape: tuple[int, ...], pad: float | Float[Tensor, " c"], like: Shaped[Tensor, "..."]
) -> Shaped[Tensor, "..."]:
    """Of the other's type and device, of one value, or of one for each channel (third axis from the end)."""
    filling = torch.as_tensor(pad, dtype=like.dtype, device=like.device)
    return (filling.reshape(-1, 1, 1) if filling.ndim else filling).expand(shape).clone()


def room(shape: tuple[int, ...], like: Shaped[Tensor, "..."], half: bool) -> Shaped[Tensor, "..."]:
    """Empty, of the other's device, and of its type or in half precision."""
    return like.new_empty(shape, dtype=torch.float16 if half else like.dtype)


def like(values: Shaped[np.ndarray, "..."], other: Tensor) -> Shaped[Tensor, "..."]:
    """NumPy's numbers as a tensor where the other one is."""
    return torch.from_numpy(values).to(other.device)


def unit(vectors: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Scaled to length 1 along the last axis."""
    return F.normalize(vectors, dim=-1)


def join(parts: Any, axis: int) -> Shaped[Tensor, "..."]:
    """One after the other along an axis."""
    return torch.cat(list(parts), dim=axis)


stack = torch.stack
