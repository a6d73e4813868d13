"""What the decision needs of NumPy; `tensors` has the same functions for torch, and tells what they do.

Differences to torch are of rounding only: a share of 1e-6 of the values' range.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Shaped, UInt8
from numpy import ndarray
from PIL import Image

where, stack = np.where, np.stack


def blank(shape: tuple[int, int], value: float, like: ndarray) -> tuple[Int[ndarray, "h w"], Float[ndarray, "h w"]]:
    """No label yet, and what a label has to beat."""
    return np.zeros(shape, np.int64), np.full(shape, value, np.float32)


def first_best(planes: Float[ndarray, "k h w"]) -> tuple[Float[ndarray, "h w"], Int[ndarray, "h w"]]:
    """Label by label: NumPy's own argmax along the first axis is many times slower."""
    value, index = planes[0].copy(), np.zeros(planes.shape[1:], np.int64)
    for number, plane in enumerate(planes[1:], start=1):
        better = plane > value
        np.copyto(value, plane, where=better)
        np.copyto(index, number, where=better)
    return value, index


def take(numbers: Int[ndarray, " n"], index: Int[ndarray, "h w"]) -> Int[ndarray, "h w"]:
    """The numbers at `index`."""
    return numbers[index]


def squares(planes: Float[ndarray, "k h w"]) -> tuple[Float[ndarray, "k h2 w2"], Float[ndarray, "k h2 w2"]]:
    """Least and most of every four neighbouring cells."""
    least = most = planes
    for axis in (1, 2):
        if planes.shape[axis] > 1:
            low, high = [slice(None)] * 3, [slice(None)] * 3
            low[axis], high[axis] = slice(None, -1), slice(1, None)
            least = np.minimum(least[tuple(low)], least[tuple(high)])
            most = np.maximum(most[tuple(low)], most[tuple(high)])
    return least, most


def top(planes: Float[ndarray, "k h w"]) -> Float[ndarray, "h w"]:
    """The largest over the labels."""
    return planes.max(0)


def anywhere(flags: Bool[ndarray, "k h w"]) -> Bool[ndarray, " k"]:
    """For each label whether it has a true cell."""
    return np.asarray(flags.any(axis=(1, 2)))


def upsample(planes: Float[ndarray, "k h w"], size: tuple[int, int]) -> Float[ndarray, "k H W"]:
    """Bilinear, pixel centres at half coordinates; always an array of its own."""
    return upsample_rows(planes, np.arange(len(planes)), size, slice(0, size[0]))


def upsample_rows(
    planes: Float[ndarray, "k h w"], labels: Int[ndarray, " n"], size: tuple[int, int], rows: slice
) -> Float[ndarray, "n rows W"]:
    """`upsample` of some labels, in some rows only."""
    some = planes[labels]
    for axis, wanted in ((1, rows), (2, slice(0, size[1]))):
        if some.shape[axis] == size[axis - 1]:
            some = some[:, wanted] if axis == 1 else some
            continue
        place = (np.arange(wanted.start, wanted.stop) + 0.5) * (some.shape[axis] / size[axis - 1]) - 0.5
        place = place.clip(0, some.shape[axis] - 1)
        before = place.astype(np.intp)
        share = (place - before).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        first = some.take(before, axis)
        second = some.take((before + 1).clip(max=some.shape[axis] - 1), axis)
        second -= first
        second *= share
        some = np.add(first, second, out=first)
    return some


def sigmoid(values: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    """In place; no overflow, however large the numbers."""
    np.tanh(np.multiply(values, 0.5, out=values), out=values)
    values += 1
    values *= 0.5
    return values


def home(array: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
    """It is there already."""
    return array


def half(array: Float[ndarray, "..."]) -> Float16[ndarray, "..."]:
    """In half precision."""
    return array.astype(np.float16)


def single(array: Shaped[ndarray, "..."]) -> Float[ndarray, "..."]:
    """In single precision."""
    return array.astype(np.float32, copy=False)


def copy(array: Shaped[ndarray, "..."]) -> Shaped[ndarray, "..."]:
    """Of its own memory."""
    return array.copy()


def filled(
    shape: tuple[int, ...], pad: float | Float[ndarray, " c"], like: Shaped[ndarray, "..."]
) -> Shaped[ndarray, "..."]:
    """Of the other's type, of one value, or of one for each channel (third axis from the end)."""
    filling = np.asarray(pad, like.dtype)
    return np.broadcast_to(filling.reshape(-1, 1, 1) if filling.ndim else filling, shape).copy()


def room(shape: tuple[int, ...], like: Shaped[ndarray, "..."], half: bool) -> Shaped[ndarray, "..."]:
    """Empty, of the other's type or in half precision."""
    return np.empty(shape, np.float16 if half else like.dtype)


def like(values: Shaped[ndarray, "..."], other: ndarray) -> Shaped[ndarray, "..."]:
    """The numbers as they are."""
    return values


def unit(vectors: Float[ndarray, "... d"]) -> Float[ndarray, "... d"]:
    """Scaled to length 1 along the last axis."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-12)


def join(parts: Sequence[Shaped[ndarray, "..."]], axis: int) -> Shaped[ndarray, "..."]:
    """One after the other along an axis."""
    return np.concatenate(list(parts), axis=axis)


def squash(rgb: UInt8[ndarray, "h w 3"], side: int) -> Float[ndarray, "3 side side"]:
    """As `inference.image.squash`."""
    small = Image.fromarray(rgb).resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1), np.float32) / np.float32(255)


def shrink(planes: Float[ndarray, "k h w"], size: tuple[int, int]) -> Float[ndarray, "k h2 w2"]:
    """Bilinear with antialiasing, to `size` (height, width)."""
    if planes.shape[1:] == size:
        return planes
    pictures = (Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(picture) for picture in pictures])
