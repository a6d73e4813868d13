"""From logits to a label map: sigmoid, then the likeliest of background and labels at every pixel.

Nothing here holds more than `CHUNK` numbers at full resolution, however many labels there are.
Letters: K labels, h w the model's resolution, H W pixels.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fusioner.errors import FusionerError

CHUNK = 2**25  # float32 numbers: 128 MiB
BAND = 2**21  # float32 numbers decided at once: 8 MiB


def decide(
    probabilities: Float[Tensor, "k h w"], threshold: float = 0.5, background: bool = True
) -> Int[Tensor, "h w"]:
    """Argmax over [threshold, p_1 .. p_K] -> 0 for background, i for the i-th label.

    Ties go to the first, so a label needs more than `threshold`. Without background every pixel gets a label, 1..K.

    Raises:
        FusionerError: `threshold` is outside [0, 1].
    """
    best, index = probabilities.max(dim=0)  # the first of equals
    floor = check_threshold(threshold)
    return torch.where(best > floor, index + 1, 0) if background else index + 1


def decide_logits(
    logits: Float[Tensor, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
    """`decide` of the logits upsampled to `size` -> (label map, the winner's probability); see `decide_bands`."""
    numbers = torch.empty(size, dtype=torch.int32, device=logits.device)
    best = torch.empty(size, device=logits.device)
    for rows, some_numbers, some_best in decide_bands(logits, size, threshold, background):
        numbers[rows], best[rows] = some_numbers, some_best
    return numbers, best


def decide_bands(
    logits: Float[Tensor, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> Iterator[tuple[slice, Int[Tensor, "rows W"], Float[Tensor, "rows W"]]]:
    """`decide` of the logits upsampled to `size`, a band of rows at a time, which stays in the processor's cache.

    Compared are logits, not probabilities: the same order, and no sigmoid for every label.

    Yields:
        Rows of the image, their label map, and the winner's probability: the threshold where background won.

    Raises:
        FusionerError: `threshold` is outside [0, 1].
    """
    floor = _logit(check_threshold(threshold)) if background else -math.inf
    able = torch.arange(len(logits), device=logits.device)
    if 4 * logits[0].numel() <= math.prod(size):  # else upsampling is little work
        able = _contenders(logits, floor)
    band = max(1, BAND // (size[1] * max(1, len(able))))
    for start in range(0, size[0], band):
        rows = slice(start, min(start + band, size[0]))
        shape = rows.stop - start, size[1]
        numbers = torch.zeros(shape, dtype=torch.int64, device=logits.device)
        best = torch.full(shape, floor, device=logits.device)
        for some in able.split(max(1, CHUNK // math.prod(shape))) if len(able) else ():
            value, index = _upsample_rows(logits, some, size, rows).max(dim=0)  # the first of equals
            index = index if len(some) == len(logits) else some[index]
            better = value > best
            numbers = torch.where(better, index + 1, numbers)
            best = torch.where(better, value, best)
        best = best.sigmoid_()
        yield rows, numbers, best.masked_fill_(numbers == 0, threshold)


def _contenders(logits: Float[Tensor, "k h w"], floor: float) -> Int[Tensor, " n"]:
    """Indices of the labels that can win at some pixel once interpolated; of many labels these are few.

    Between four neighbouring cells an interpolated value stays within their least and most; so a label whose most is
    below another's least in every such square, or below the floor, wins nowhere.
    """
    square = min(2, logits.shape[1]), min(2, logits.shape[2])
    portions = logits.split(max(1, CHUNK // (4 * logits[0].numel())))
    bar = torch.stack([(-F.max_pool2d(-some, square, stride=1)).amax(0) for some in portions]).amax(0)  # (h - 1, w - 1)
    bar = bar.clamp_min(floor) - 1e-3  # interpolation rounds
    able = torch.cat([(F.max_pool2d(some, square, stride=1) >= bar).flatten(1).any(1) for some in portions])
    return able.nonzero()[:, 0]


def upsample(logits: Float[Tensor, "k h w"], size: tuple[int, int]) -> Float[Tensor, "k H W"]:
    """Bilinear, pixel centres at half coordinates; always a tensor of its own, never a view of `logits`."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.clone()
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _upsample_rows(
    logits: Float[Tensor, "k h w"], labels: Int[Tensor, " n"], size: tuple[int, int], rows: slice
) -> Float[Tensor, "n rows W"]:
    """`upsample` of some labels, but for its rounding, in some rows only."""
    height, width = logits.shape[-2:]
    if height == size[0]:
        some = logits[labels, rows]
    else:
        y = (torch.arange(rows.start, rows.stop, device=logits.device) + 0.5) * (height / size[0]) - 0.5
        y = y.clamp_(0, height - 1)
        above = y.long()
        below = (above + 1).clamp_(max=height - 1)
        some = torch.lerp(logits[labels[:, None], above], logits[labels[:, None], below], (y - above)[:, None])
    if width == size[1]:
        return some
    return F.interpolate(some[None], size=some.shape[1:2] + size[1:], mode="bilinear", align_corners=False)[0]


def chunks(logits: Float[Tensor, "k h w"], size: tuple[int, int]) -> Iterator[Float[Tensor, "some H W"]]:
    """The probabilities at `size`, as many labels at once as `CHUNK` allows, in order."""
    for some in logits.split(max(1, CHUNK // (size[0] * size[1]))):
        yield upsample(some, size).sigmoid_()


def check_threshold(threshold: float) -> float:
    """The threshold itself; FusionerError unless it is a number in [0, 1]."""
    if not 0 <= threshold <= 1:  # false for NaN too
        raise FusionerError(f"the threshold is a probability between 0 and 1, not {threshold}")
    return float(threshold)


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))
