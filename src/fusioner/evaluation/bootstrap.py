"""Measures with bootstrap 95 % intervals, computed from counts and one weight per image.

Weights of 1 give the measure itself; weights sampled with replacement (how often an image was drawn) give the
bootstrap. All pairs, prompts and classes of an image are drawn together. Over several folds the union of their images
is drawn, so that an image has the same weight in every fold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from fusioner.evaluation.results import Counts, GroupCounts, PromptCounts

Weights = Float[np.ndarray, "n_resamples images"]
Values = Float[np.ndarray, "n_resamples"]
MeasureKey = tuple[str, Any]
"""("measure", its name), ("class", id) or ("argmax", id)."""
T = TypeVar("T")
CHUNK = 100  # resamples at a time: 100 x 40,000 images of COCO are 32 MB


@dataclass(frozen=True)
class Estimate:
    """A value in per cent and the bounds of its 95 % interval; NaN if nothing was measured."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Values) -> "Estimate":
        """Create from the value itself (first) and its bootstrap samples."""
        samples = values[1:][~np.isnan(values[1:])]
        low, high = np.percentile(samples, [2.5, 97.5]) if len(samples) else (np.nan, np.nan)
        return cls(float(values[0]), float(low), float(high))

    def to_json(self) -> dict[str, float | None]:
        """Return the three rounded numbers, None for NaN."""
        return {name: None if math.isnan(value) else round(value, 4) for name, value in vars(self).items()}


@dataclass
class Summary:
    """Measures of an evaluation by their name in `report.MEASURES`, IoU by class id, and numbers of images and prompts.

    `per_class` is the IoU of the protocol, `argmax_per_class` that of unseen classes competing with each other.
    """

    measures: dict[str, Estimate]
    per_class: dict[int, Estimate]
    argmax_per_class: dict[int, Estimate] = field(default_factory=dict)
    images: int = 0
    pairs: int = 0
    absent_prompts: int = 0


def summarize(folds: list[Counts], n_resamples: int = 1000, seed: int = 0) -> Summary:
    """Return the measures of one evaluation, or their mean over several folds, with bootstrap intervals."""
    images = sorted({image for counts in folds for image in counts.plan.images})
    parts = [measure_folds(folds, images, weights) for weights in sample_weights(len(images), n_resamples, seed)]
    estimates = {key: Estimate.of(100 * np.concatenate([part[key] for part in parts])) for key in parts[0]}
    return Summary(
        *(of_kind(estimates, kind) for kind in ("measure", "class", "argmax")),
        images=len(images),
        pairs=sum(len(counts.pairs.image) for counts in folds),
        absent_prompts=sum(int((counts.presence.values[:, 0] == 0).sum()) for counts in folds),
    )


def of_kind(values: Mapping[MeasureKey, T], kind: str) -> dict[Any, T]:
    """Return the values of the keys of one kind, by the second part of the key."""
    return {name: value for (key_kind, name), value in values.items() if key_kind == kind}


def measure_folds(folds: Sequence[Counts], images: Sequence[str], weights: Weights) -> dict[MeasureKey, Values]:
    """Return the mean of every measure over folds, as fractions; `weights` has a column for each of `images`."""
    position = {image: i for i, image in enumerate(images)}
    measured = []
    for counts in folds:
        columns = np.array([position[image] for image in counts.plan.images], int)
        measured.append(_measure(counts, weights[:, columns]))
    keys = dict.fromkeys(key for fold in measured for key in fold)
    return {key: np.mean([fold[key] for fold in measured if key in fold], axis=0) for key in keys}


def sample_weights(images: int, n_resamples: int, seed: int) -> list[Float[np.ndarray, "_ images"]]:
    """Return weights of 1 first, then chunks of how often each image was drawn."""
    rng = np.random.default_rng(seed)
    chunks: list[Weights] = [np.ones((1, images))]
    for start in range(0, n_resamples, CHUNK):
        size = min(CHUNK, n_resamples - start)
        drawn = rng.integers(0, images, size=(size, images)) + np.arange(size)[:, None] * images
        chunks.append(np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(float))
    return chunks


def _measure(counts: Counts, weights: Weights) -> dict[MeasureKey, Values]:
    measures: dict[MeasureKey, Values] = {}
    if len(counts.pairs.image):
        ids, iou, fb_iou = _pair_iou(counts.pairs._replace(values=counts.pairs.values[:, :4]), weights)
        if "all" in counts.groups:
            measures["measure", "single_prompt_miou"] = _nanmean(iou)
        else:
            measures |= {("measure", "miou"): _nanmean(iou), ("measure", "fb_iou"): fb_iou}
            measures |= {("class", int(i)): iou[:, k] for k, i in enumerate(ids)}
        ablated = counts.pairs._replace(values=counts.pairs.values[:, 4:])
        measures["measure", "prompt_ablated_miou"] = _nanmean(_pair_iou(ablated, weights)[1])
    argmax = {name: _group_iou(group, weights) for name, group in counts.groups.items()}
    if "all" in argmax:
        measures |= _measure_all_classes(counts, argmax["all"], weights)
    if "unseen" in argmax:
        measures |= _measure_unseen_and_seen(counts, argmax)
    is_present = counts.presence.values[:, 0] > 0
    if not is_present.all():
        measures |= _measure_presence(counts.presence.take(is_present), counts.presence.take(~is_present), weights)
    return measures


def _measure_presence(present: PromptCounts, absent: PromptCounts, weights: Weights) -> dict[MeasureKey, Values]:
    """Measure prompts of one class by whether it is in the image."""
    in_image, elsewhere = weights[:, present.image], weights[:, absent.image]
    found, share, wrong = present.values[:, 2], absent.values[:, 1], absent.values[:, 2]
    tp, fn, fp, tn = in_image @ found, in_image @ (1 - found), elsewhere @ wrong, elsewhere @ (1 - wrong)
    prompts = elsewhere.sum(axis=1)
    return {
        ("measure", "false_positive_area"): _divide(elsewhere @ share, prompts),
        ("measure", "specificity"): _divide(tn, prompts),
        # the Matthews correlation of predicting any pixel with presence; 0 where one of them is constant
        ("measure", "presence_mcc"): _divide(
            tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)), empty=0.0
        ),
    }


def _measure_all_classes(counts: Counts, iou: np.ndarray, weights: Weights) -> dict[MeasureKey, Values]:
    """Measure data sets without folds, where the argmax over all classes is the protocol itself."""
    group = counts.groups["all"]
    measures: dict[MeasureKey, Values] = {}
    measures["measure", "miou"] = _nanmean(iou if counts.plan.include_background else iou[:, 1:])
    if counts.plan.background:
        measures["measure", "fb_iou"] = _group_fb_iou(group, weights)
        measures["measure", "background_iou"] = iou[:, 0]
    present = group.counts[:, 1, 1:].sum(axis=0) > 0
    return measures | {("class", i): iou[:, k + 1] for k, i in enumerate(group.class_ids) if present[k]}


def _measure_unseen_and_seen(counts: Counts, argmax: Mapping[str, np.ndarray]) -> dict[MeasureKey, Values]:
    unseen = _nanmean(argmax["unseen"][:, 1:])
    measures: dict[MeasureKey, Values] = {("measure", "argmax_miou"): unseen}
    measures["measure", "background_iou"] = argmax["unseen"][:, 0]
    for k, i in enumerate(counts.groups["unseen"].class_ids, start=1):
        measures["argmax", i] = argmax["unseen"][:, k]
    if "seen" in argmax:
        seen = _nanmean(argmax["seen"][:, 1:])
        measures["measure", "seen_argmax_miou"] = seen
        measures["measure", "harmonic"] = _divide(2 * seen * unseen, seen + unseen, empty=0.0)
    return measures


def _pair_iou(table: PromptCounts, weights: Weights) -> tuple[np.ndarray, Float[np.ndarray, "n_resamples c"], Values]:
    """Return (class ids, foreground IoU by class, FB-IoU)."""
    ids, column = np.unique(table.class_id, return_inverse=True)
    per_image = np.zeros((weights.shape[1], len(ids), 4))
    np.add.at(per_image, (table.image, column), table.values)
    sums = (weights @ per_image.reshape(len(per_image), -1)).reshape(len(weights), len(ids), 4)
    total = sums.sum(axis=1)
    fb_iou = (_divide(total[:, 0], total[:, 1]) + _divide(total[:, 2], total[:, 3])) / 2
    return ids, _divide(sums[..., 2], sums[..., 3]), fb_iou


def _group_iou(group: GroupCounts, weights: Weights) -> Float[np.ndarray, "n_resamples c"]:
    """Return the IoU by class (background first); NaN if the drawn images do not contain the class."""
    inside, truth, predicted = _group_sums(group, weights)
    return np.where(truth > 0, _divide(inside, truth + predicted - inside), np.nan)


def _group_fb_iou(group: GroupCounts, weights: Weights) -> Values:
    """Return the mean IoU of background and of all classes taken as one."""
    inside, truth, predicted = _group_sums(group, weights)
    total = truth.sum(axis=1)
    foreground = total - truth[:, 0] - predicted[:, 0] + inside[:, 0]
    background = _divide(inside[:, 0], truth[:, 0] + predicted[:, 0] - inside[:, 0])
    return (background + _divide(foreground, total - inside[:, 0])) / 2


def _group_sums(group: GroupCounts, weights: Weights) -> Float[np.ndarray, "3 n_resamples c"]:
    count, _, classes = group.counts.shape
    sums = weights @ group.counts.reshape(count, -1).astype(float)
    return sums.reshape(len(weights), 3, classes).transpose(1, 0, 2)


def _nanmean(iou: Float[np.ndarray, "n_resamples c"]) -> Values:
    """Return the mean over the classes that were drawn; NaN if none was."""
    known = ~np.isnan(iou)
    return _divide(np.where(known, iou, 0).sum(axis=1), known.sum(axis=1))


def _divide(above: np.ndarray, below: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Return `above / below`, and `empty` where `below` is 0."""
    result = np.full(np.broadcast(above, below).shape, empty)
    return np.divide(above, below, out=result, where=below > 0)
