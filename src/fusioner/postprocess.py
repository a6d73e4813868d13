"""From logits to a label map: sigmoid, then the likeliest of background and labels at every pixel.

Logits are NumPy arrays or torch tensors, see `arrays`; the answer is of the same kind.
Nothing here holds more than `CHUNK` numbers at full resolution, however many labels there are.
Letters: K labels, h w the model's resolution, H W pixels.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from fusioner.backend import Array, ways
from fusioner.options import check_threshold

CHUNK = 2**25  # float32 numbers: 128 MiB
BAND = 2**21  # float32 numbers decided at once: 8 MiB


def decide(probabilities: Float[Array, "k h w"], threshold: float = 0.5, background: bool = True) -> Int[Array, "h w"]:
    """Argmax over [threshold, p_1 .. p_K] -> 0 for background, i for the i-th label.

    Ties go to the first, so a label needs more than `threshold`. Without background every pixel gets a label, 1..K.

    Raises:
        FusionerError: `threshold` is outside [0, 1].
    """
    do = ways(probabilities)
    best, index = do.first_best(probabilities)
    floor = check_threshold(threshold)
    return do.where(best > floor, index + 1, 0) if background else index + 1


def decide_logits(
    logits: Float[Array, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> tuple[Int[Array, "H W"], Float[Array, "H W"]]:
    """`decide` of the logits upsampled to `size` -> (label map, the winner's probability); see `decide_bands`."""
    bands = [(numbers, best) for _, numbers, best in decide_bands(logits, size, threshold, background)]
    do = ways(logits)
    return do.join((numbers for numbers, _ in bands), 0), do.join((best for _, best in bands), 0)


def decide_bands(
    logits: Float[Array, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> Iterator[tuple[slice, Int[Array, "rows W"], Float[Array, "rows W"]]]:
    """`decide` of the logits upsampled to `size`, a band of rows at a time, which stays in the processor's cache.

    Compared are logits, not probabilities: the same order, and no sigmoid for every label.

    Yields:
        Rows of the image, their label map, and the winner's probability: the threshold where background won.

    Raises:
        FusionerError: `threshold` is outside [0, 1].
    """
    do, floor = ways(logits), _logit(check_threshold(threshold)) if background else -math.inf
    able = np.arange(len(logits))
    if 4 * math.prod(logits.shape[1:]) <= math.prod(size):  # else upsampling is little work
        able = _contenders(logits, floor)
    band = max(1, BAND // (size[1] * max(1, len(able))))
    for start in range(0, size[0], band):
        rows = slice(start, min(start + band, size[0]))
        shape = rows.stop - start, size[1]
        numbers, best = do.blank(shape, floor, logits)
        portion = max(1, CHUNK // math.prod(shape))
        for first in range(0, len(able), portion):
            some = able[first : first + portion]
            value, index = do.first_best(do.upsample_rows(logits, some, size, rows))
            better = value > best
            numbers = do.where(better, do.take(some, index) + 1, numbers)
            best = do.where(better, value, best)
        best = do.sigmoid(best)
        best[numbers == 0] = threshold
        yield rows, numbers, best


def _contenders(logits: Float[Array, "k h w"], floor: float) -> Int[np.ndarray, " n"]:
    """Indices of the labels that can win at some pixel once interpolated; of many labels these are few.

    Between four neighbouring cells an interpolated value stays within their least and most; so a label whose most is
    below another's least in every such square, or below the floor, wins nowhere.
    """
    do, portion = ways(logits), max(1, CHUNK // (4 * math.prod(logits.shape[1:])))
    portions = [logits[start : start + portion] for start in range(0, len(logits), portion)]
    bar = do.top(do.stack([do.top(do.squares(some)[0]) for some in portions]))  # (h - 1, w - 1)
    bar = bar.clip(min=floor) - 1e-3  # interpolation rounds
    able = np.concatenate([do.anywhere(do.squares(some)[1] >= bar) for some in portions])
    return able.nonzero()[0]


def upsample(logits: Float[Array, "k h w"], size: tuple[int, int]) -> Float[Array, "k H W"]:
    """Bilinear, pixel centres at half coordinates; always an array of its own, never a view of `logits`."""
    return ways(logits).upsample(logits, size)


def mean_logits(answers: Sequence[Float[Array, "k _ _"]]) -> Float[Array, "k h w"]:
    """Of several looks at one image, at the resolution of the finest."""
    if len(answers) == 1:
        return answers[0]
    size = max(one.shape[1] for one in answers), max(one.shape[2] for one in answers)
    first, *others = (upsample(one, size) for one in answers)
    for one in others:
        first += one
    first /= len(answers)
    return first


def chunks(logits: Float[Array, "k h w"], size: tuple[int, int]) -> Iterator[Float[Array, "some H W"]]:
    """The probabilities at `size`, as many labels at once as `CHUNK` allows, in order."""
    do, portion = ways(logits), max(1, CHUNK // (size[0] * size[1]))
    for start in range(0, len(logits), portion):
        yield do.sigmoid(do.upsample(logits[start : start + portion], size))


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))
