"""From logits to a label map: upsampling, decision rule and guided filter, in NumPy.

No function holds more than `CHUNK_SIZE` values at full resolution, however many labels there are.
Letters: K labels, h w the network's resolution, H W pixels, S side of the square guide.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fusioner.options import check_threshold

CHUNK_SIZE = 2**25  # float32 values: 128 MiB
BAND_SIZE = 2**21  # float32 values decided at once: 8 MiB, which fits into the processor's cache

# Tuned on training images, see docs/accuracy.md.
GUIDE_SIZE = 112  # side of the guide in cells, for images of any size and aspect ratio
GUIDE_RADIUS = 4  # cells on each side of a window's centre
GUIDE_EPSILON = 1e-4  # colour variance (in [0, 1]) below which a window counts as flat

PAMR_DISTANCES = (8, 16)  # px, as SCLIP and NACLIP use it


def decide(
    probabilities: Float[np.ndarray, "k h w"], threshold: float = 0.5, background: bool = True
) -> Int[np.ndarray, "h w"]:
    """Return the argmax over [threshold, p_1 .. p_K]: 0 for background, i for the i-th label.

    Ties go to the first, so a label needs more than `threshold`. Without background every pixel gets a label, 1..K.

    Raises:
        FusionerError: `threshold` is not in [0, 1].
    """
    best, index = _argmax(probabilities)
    floor = check_threshold(threshold)
    return np.where(best > floor, index + 1, 0) if background else index + 1


def decide_logits(
    logits: Float[np.ndarray, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> tuple[Int[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """Decide the logits upsampled to `size`: (label map, probability of the winner); see `decide_bands`."""
    _, numbers, best = zip(*decide_bands(logits, size, threshold, background), strict=True)
    return np.concatenate(numbers), np.concatenate(best)


def decide_bands(
    logits: Float[np.ndarray, "k h w"], size: tuple[int, int], threshold: float = 0.5, background: bool = True
) -> Iterator[tuple[slice, Int[np.ndarray, "rows W"], Float[np.ndarray, "rows W"]]]:
    """Decide the logits upsampled to `size`, a band of rows at a time.

    Compares logits, not probabilities: the order is the same, without a sigmoid per label.

    Yields:
        Rows of the image, their label map, and the winner's probability (the threshold for background).

    Raises:
        FusionerError: `threshold` is not in [0, 1].
    """
    floor = _logit(check_threshold(threshold)) if background else -math.inf
    candidates = np.arange(len(logits))
    if 4 * math.prod(logits.shape[1:]) <= math.prod(size):  # otherwise upsampling is cheap
        candidates = _candidate_labels(logits, floor)
    band = max(1, BAND_SIZE // (size[1] * max(1, len(candidates))))
    for start in range(0, size[0], band):
        rows = slice(start, min(start + band, size[0]))
        shape = rows.stop - start, size[1]
        numbers, best = np.zeros(shape, np.int64), np.full(shape, floor, np.float32)
        chunk = max(1, CHUNK_SIZE // math.prod(shape))
        for first in range(0, len(candidates), chunk):
            labels = candidates[first : first + chunk]
            value, index = _argmax(_upsample_rows(logits, labels, size, rows))
            better = value > best
            np.copyto(numbers, labels[index] + 1, where=better)
            np.copyto(best, value, where=better)
        best = sigmoid(best)
        best[numbers == 0] = threshold
        yield rows, numbers, best


def iter_masks(
    logits: Float[np.ndarray, "k h w"], size: tuple[int, int], threshold: float = 0.5
) -> Iterator[tuple[Bool[np.ndarray, "H W"], float]]:
    """Yield for every label the mask of its probabilities above the threshold, at `size`, and their mean in the mask.

    The mean is 0 for a mask without pixels. Masks of different labels may overlap.

    Raises:
        FusionerError: `threshold` is not in [0, 1].
    """
    floor = _logit(check_threshold(threshold))
    for plane in logits:
        if plane.max() <= floor:
            yield np.zeros(size, bool), 0.0
            continue
        plane = upsample(plane[None], size)[0]
        mask = plane > floor
        yield mask, float(sigmoid(plane[mask]).mean(dtype=np.float64)) if mask.any() else 0.0


def find_outscoring(
    logits: Float[np.ndarray, "k h w"], labels: Sequence[int], threshold: float
) -> Iterator[tuple[int, int]]:
    """Yield those of the labels (indices) that exceed the threshold somewhere, each with the label that outscores it.

    That is the label which wins most of the cells where the probability of the former exceeds the threshold.
    """
    floor, winners = _logit(check_threshold(threshold)), None
    for label in labels:
        cells = logits[label] > floor
        if not cells.any():
            continue
        winners = _argmax(logits)[1] if winners is None else winners
        counts = np.bincount(winners[cells], minlength=len(logits))
        counts[label] = 0
        if counts.any():
            yield label, int(counts.argmax())


def _candidate_labels(logits: Float[np.ndarray, "k h w"], floor: float) -> Int[np.ndarray, " n"]:
    """Return the indices of labels that can win at some interpolated pixel, usually few of many labels.

    An interpolated value lies between the minimum and the maximum of its four neighbouring cells. A label therefore
    wins nowhere if in every such square its maximum is below another label's minimum or below the floor.
    """
    chunk = max(1, CHUNK_SIZE // (4 * math.prod(logits.shape[1:])))
    parts = [logits[start : start + chunk] for start in range(0, len(logits), chunk)]
    bar = np.max([_square_bounds(part)[0].max(axis=0) for part in parts], axis=0)  # (h - 1, w - 1)
    bar = bar.clip(min=floor) - 1e-3  # rounding of the interpolation
    possible: list[Bool[np.ndarray, " n"]] = [(_square_bounds(part)[1] >= bar).any(axis=(1, 2)) for part in parts]
    return np.concatenate(possible).nonzero()[0]


def _square_bounds(
    planes: Float[np.ndarray, "k h w"],
) -> tuple[Float[np.ndarray, "k h2 w2"], Float[np.ndarray, "k h2 w2"]]:
    """Return the minimum and maximum of every four neighbouring cells."""
    low = high = planes
    for axis in (1, 2):
        if planes.shape[axis] > 1:
            before, after = [slice(None)] * 3, [slice(None)] * 3
            before[axis], after[axis] = slice(None, -1), slice(1, None)
            low = np.minimum(low[tuple(before)], low[tuple(after)])
            high = np.maximum(high[tuple(before)], high[tuple(after)])
    return low, high


def _argmax(planes: Float[np.ndarray, "k h w"]) -> tuple[Float[np.ndarray, "h w"], Int[np.ndarray, "h w"]]:
    """Return the maximum over the labels and its first index; faster than NumPy's argmax along the first axis."""
    value, index = planes[0].copy(), np.zeros(planes.shape[1:], np.int64)
    for number, plane in enumerate(planes[1:], start=1):
        better = plane > value
        np.copyto(value, plane, where=better)
        np.copyto(index, number, where=better)
    return value, index


def upsample(logits: Float[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k H W"]:
    """Resize bilinearly (half-pixel centres); always a new array."""
    return _upsample_rows(logits, np.arange(len(logits)), size, slice(0, size[0]))


def _upsample_rows(
    logits: Float[np.ndarray, "k h w"], labels: Int[np.ndarray, " n"], size: tuple[int, int], rows: slice
) -> Float[np.ndarray, "n rows W"]:
    """Return some labels and rows of `upsample`."""
    result = logits[labels]
    for axis, positions in ((1, rows), (2, slice(0, size[1]))):
        length = result.shape[axis]
        if length == size[axis - 1]:
            result = result[:, positions] if axis == 1 else result
            continue
        place = (np.arange(positions.start, positions.stop) + 0.5) * (length / size[axis - 1]) - 0.5
        place = place.clip(0, length - 1)
        before = place.astype(np.intp)
        weight = (place - before).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        first, second = result.take(before, axis), result.take((before + 1).clip(max=length - 1), axis)
        second -= first
        second *= weight
        result = np.add(first, second, out=first)
    return result


def _shrink(planes: Float[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k h2 w2"]:
    """Average neighbouring cells of the axes that are longer than those of `size` (height, width)."""
    for axis, target in enumerate(size, start=1):
        length = planes.shape[axis]
        if length > target:
            edges, cells = np.arange(target + 1) * (length / target), np.arange(length)
            overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
            weights = (overlap.clip(min=0) * (target / length)).astype(planes.dtype)
            planes = np.moveaxis(np.tensordot(planes, weights, (axis, 1)), -1, axis)
    return planes


def mean_logits(scales: Sequence[Float[np.ndarray, "k _ _"]]) -> Float[np.ndarray, "k h w"]:
    """Average the logits of several sizes of an image, at the finest resolution."""
    if len(scales) == 1:
        return scales[0]
    size = max(logits.shape[1] for logits in scales), max(logits.shape[2] for logits in scales)
    total = upsample(scales[0], size)
    for logits in scales[1:]:
        total += upsample(logits, size)
    total /= len(scales)
    return total


def iter_probabilities(
    logits: Float[np.ndarray, "k h w"], size: tuple[int, int]
) -> Iterator[Float[np.ndarray, "n H W"]]:
    """Yield the probabilities at `size`, as many labels at once as fit into `CHUNK_SIZE`."""
    chunk = max(1, CHUNK_SIZE // (size[0] * size[1]))
    for start in range(0, len(logits), chunk):
        yield sigmoid(upsample(logits[start : start + chunk], size))


def sigmoid(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Compute the sigmoid in place, without overflow."""
    np.tanh(np.multiply(values, 0.5, out=values), out=values)
    values += 1
    values *= 0.5
    return values


class GuidedFilter:
    """Aligns the edges of logits with the edges of an image.

    He, Sun, Tang, "Guided Image Filtering" (TPAMI 2013), with a colour guide: within each window the logits are
    modelled as a linear function of the colours. Terms that depend on the image alone are computed once.

    Args:
        guide: the image resized to a square, RGB in [0, 1].
    """

    def __init__(
        self, guide: Float[np.ndarray, "3 s s"], radius: int = GUIDE_RADIUS, epsilon: float = GUIDE_EPSILON
    ) -> None:
        self.guide, self.radius = guide.astype(np.float64), radius
        place, last = np.arange(guide.shape[-1]), guide.shape[-1] - 1
        inside = np.minimum(place + radius, last) - np.maximum(place - radius, 0) + 1.0
        self.window_area = inside[:, None] * inside
        self.mean = self._box_mean(self.guide)
        products = self.guide[:, None] * self.guide
        covariance = self._box_mean(products) - self.mean[:, None] * self.mean
        regular = epsilon * np.eye(3)[:, :, None, None]
        self.inverse = np.linalg.inv((covariance + regular).transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)

    def __call__(self, logits: Float[np.ndarray, "k h w"]) -> Float[np.ndarray, "k s s"]:
        """Return the filtered logits at the guide's size."""
        size = self.guide.shape[1], self.guide.shape[2]
        planes = upsample(_shrink(logits, size), size)
        return np.stack([self._filter(plane) for plane in planes]).astype(planes.dtype)

    def _filter(self, p: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
        mean = self._box_mean(p)
        covariance = self._box_mean(p * self.guide) - mean * self.mean  # (3, S, S)
        slope = (self.inverse * covariance).sum(axis=1)
        offset = mean - (slope * self.mean).sum(axis=0)
        return (self._box_mean(slope) * self.guide).sum(axis=0) + self._box_mean(offset)

    def _box_mean(self, x: Float[np.ndarray, "*n s s"]) -> Float[np.ndarray, "*n s s"]:
        """Return the mean over each window (at the border: over its inside part), from running sums.

        Products with a band matrix take the same time, but BLAS threads wait for one another on a busy machine.
        """
        side, radius = x.shape[-1], self.radius
        diameter = 2 * radius + 1
        sums = np.zeros((*x.shape[:-2], side + diameter, side + diameter))
        sums[..., radius + 1 : radius + 1 + side, radius + 1 : radius + 1 + side] = x
        np.cumsum(sums, axis=-1, out=sums)
        sums = sums[..., diameter:] - sums[..., :-diameter]
        np.cumsum(sums, axis=-2, out=sums)
        sums = sums[..., diameter:, :] - sums[..., :-diameter, :]
        sums /= self.window_area
        return sums


def refine_by_pixels(
    scores: Float[np.ndarray, "n h w"], image: UInt8[np.ndarray, "h w 3"], iterations: int
) -> Float[np.ndarray, "n h w"]:
    """Return the scores averaged over pixels of similar colour near each pixel, several times over.

    PAMR (Araslanov and Roth, arXiv 2005.08104), with the 8 neighbours at distances of 8 and 16 px.
    """
    colours = image.transpose(2, 0, 1).astype(np.float32)
    near = [colours, *_neighbours(colours)]
    # The published code counts the pixel itself once per distance in the standard deviation.
    deviation = np.std([*near, *[colours] * (len(PAMR_DISTANCES) - 1)], axis=0, ddof=1)
    affinity = [-(np.abs(colours - other) / (1e-8 + 0.1 * deviation)).mean(axis=0) for other in near[1:]]
    weights = np.exp(affinity - np.max(affinity, axis=0))
    weights /= weights.sum(axis=0)
    for _ in range(iterations):
        refined = np.zeros_like(scores)
        for weight, other in zip(weights, _neighbours(scores), strict=True):
            refined += weight * other
        scores = refined
    return scores


def _neighbours(planes: Float[np.ndarray, "n h w"]) -> Iterator[Float[np.ndarray, "n h w"]]:
    """Yield views of the planes shifted to the 8 neighbours at each of `PAMR_DISTANCES`; the border is repeated."""
    height, width = planes.shape[1:]
    for distance in PAMR_DISTANCES:
        padded = np.pad(planes, ((0, 0), (distance, distance), (distance, distance)), mode="edge")
        for row, column in itertools.product((0, 1, 2), repeat=2):
            if (row, column) != (1, 1):
                top, left = row * distance, column * distance
                yield padded[:, top : top + height, left : left + width]


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))
