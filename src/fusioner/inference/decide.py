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


def decide(
    probabilities: Float[Tensor, "k h w"], threshold: float = 0.5, background: bool = True
) -> Int[Tensor, "h w"]:
    """Argmax over [threshold, p_1 .. p_K] -> 0 for background, i for the i-th label (int32).

    Ties go to the first, so a label needs more than `threshold`. Without background every pixel gets a label, 1..K.

    Raises:
        FusionerError: `threshold` is outside [0, 1].
    """
    floor = check_threshold(threshold) if background else -math.inf
    _, height, width = probabilities.shape
    winner = _Winner((height, width), floor, probabilities.device)
    winner.add(probabilities, range(1, len(probabilities) + 1))
    return winner.labels


def decide_logits(
    logits: Float[Tensor, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
    """`decide` of the logits upsampled to `size`, a few labels at a time -> (label map, the winner's probability).

    Compared are logits, not probabilities: the same order, and no sigmoid for every label. Where background wins, its
    "probability" is the threshold.
    """
    floor = _logit(check_threshold(threshold)) if background else -math.inf
    winner = _Winner(size, floor, logits.device)
    portion = max(1, CHUNK // (size[0] * size[1]))
    if tuple(logits.shape[-2:]) == tuple(size):
        for start in range(0, len(logits), portion):
            some = logits[start : start + portion]
            winner.add(some, range(start + 1, start + 1 + len(some)))
    else:
        for some in _contenders(logits, floor).split(portion):
            if len(some):
                winner.add(upsample(logits[some], size), (some + 1).tolist())
    best = winner.best.sigmoid_()
    return winner.labels, best.masked_fill_(winner.labels == 0, threshold)


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


class _Winner:
    """The running argmax over background, worth `floor`, and labels added in rising order."""

    def __init__(self, size: tuple[int, int], floor: float, device: torch.device) -> None:
        self.labels = torch.zeros(size, dtype=torch.int32, device=device)
        self.best = torch.full(size, floor, device=device)

    def add(self, values: Float[Tensor, "k h w"], numbers: range | list[int]) -> None:
        value, index = values.max(dim=0)  # the first of equals
        better = value > self.best
        named = torch.tensor(list(numbers), dtype=torch.int32, device=index.device)[index]
        self.labels = torch.where(better, named, self.labels)
        self.best = torch.where(better, value, self.best)
