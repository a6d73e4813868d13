"""From counts to figures with 95 % intervals: every figure is a function of one weight per image.

Weight 1 for all images gives the figure itself; weights drawn with replacement (how often an image was drawn) give the
bootstrap. The images are the unit: all pairs, prompts and classes of an image are drawn together. Over several folds
the union of their images is drawn, so an image weighs the same in each fold it is in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from fusioner.evaluation.results import Evidence, Group, Rows

Weights = Float[np.ndarray, "draws images"]
Values = Float[np.ndarray, "draws"]
CHUNK = 100  # draws at a time: 100 x 40,000 images of COCO are 32 MB


@dataclass(frozen=True)
class Figure:
    """A figure in per cent with the bounds of its 95 % interval (NaN where nothing was measured)."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Values) -> "Figure":
        """From the figure itself (first) and its bootstrap draws."""
        drawn = values[1:][~np.isnan(values[1:])]
        low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
        return cls(float(values[0]), float(low), float(high))


@dataclass
class Summary:
    """Figures by name, overall and per class.

    Attributes:
        figures: `miou`, `fb_iou`, `argmax_miou`, `seen_argmax_miou`, `harmonic`, `background_iou`,
            `single_prompt_miou`, `prompt_ablated_miou`, `false_positive_area`, `specificity`; those that were measured.
        per_class: class id -> IoU of the protocol; argmax_per_class: class id -> IoU when all compete.
        images, pairs, absent_prompts: how many the figures rest on.
    """

    figures: dict[str, Figure]
    per_class: dict[int, Figure]
    argmax_per_class: dict[int, Figure] = field(default_factory=dict)
    images: int = 0
    pairs: int = 0
    absent_prompts: int = 0


def summarise(folds: list[Evidence], draws: int = 1000, seed: int = 0) -> Summary:
    """Figures of one evaluation, or the mean over several folds, with bootstrap intervals over images."""
    images = sorted({image for evidence in folds for image in evidence.plan.images})
    parts = [measure_folds(folds, images, weights) for weights in image_weights(len(images), draws, seed)]
    joined = {key: Figure.of(100 * np.concatenate([part[key] for part in parts])) for key in parts[0]}
    return Summary(
        figures={name: figure for (kind, name), figure in joined.items() if kind == "figure"},
        per_class={int(name): figure for (kind, name), figure in joined.items() if kind == "class"},
        argmax_per_class={int(name): figure for (kind, name), figure in joined.items() if kind == "argmax"},
        images=len(images),
        pairs=sum(len(e.pairs.image) for e in folds),
        absent_prompts=sum(len(e.absent.image) for e in folds),
    )


Key = tuple[str, str]  # ("figure", its name), ("class", id) or ("argmax", id)


def measure_folds(folds: Sequence[Evidence], images: Sequence[str], weights: Weights) -> dict[Key, Values]:
    """Every figure as a fraction, or its mean over several folds; `weights` has a column an image of `images`."""
    place = {image: i for i, image in enumerate(images)}
    columns = [np.array([place[image] for image in evidence.plan.images], int) for evidence in folds]
    return _mean_over_folds([_measure(e, weights[:, own]) for e, own in zip(folds, columns, strict=True)])


def image_weights(images: int, draws: int, seed: int) -> list[Weights]:
    """All ones first, then how often each image was drawn."""
    rng = np.random.default_rng(seed)
    chunks: list[Weights] = [np.ones((1, images))]
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        drawn = rng.integers(0, images, size=(size, images)) + np.arange(size)[:, None] * images
        chunks.append(np.bincount(drawn.ravel(), minlength=size * images).reshape(size, images).astype(float))
    return chunks


def _mean_over_folds(measured: list[dict[Key, Values]]) -> dict[Key, Values]:
    keys = dict.fromkeys(key for one in measured for key in one)
    return {key: np.mean([one[key] for one in measured if key in one], axis=0) for key in keys}


def _measure(evidence: Evidence, weights: Weights) -> dict[Key, Values]:
    """Every figure of one evaluation, as fractions."""
    found: dict[Key, Values] = {}
    if len(evidence.pairs.image):
        ids, iou, fb = _fold_iou(evidence.pairs, weights)
        if "all" in evidence.groups:
            found["figure", "single_prompt_miou"] = _mean(iou)
        else:
            found |= {("figure", "miou"): _mean(iou), ("figure", "fb_iou"): fb}
            found |= {("class", str(i)): iou[:, k] for k, i in enumerate(ids)}
    argmax = {name: _argmax_iou(group, weights) for name, group in evidence.groups.items()}
    if "all" in argmax:
        found |= _only_argmax(evidence, argmax["all"], weights)
    if "unseen" in argmax:
        found |= _unseen_and_seen(evidence, argmax)
    if len(evidence.absent.image):
        for column, name in enumerate(("false_positive_area", "specificity")):
            found["figure", name] = _weighted(evidence.absent, column, weights)
    if len(evidence.blind.image):
        found["figure", "prompt_ablated_miou"] = _mean(_fold_iou(evidence.blind, weights)[1])
    return found


def _only_argmax(evidence: Evidence, iou: Float[np.ndarray, "draws c"], weights: Weights) -> dict[Key, Values]:
    """Sets without folds: the argmax among all classes is the protocol itself."""
    group = evidence.groups["all"]
    found: dict[Key, Values] = {("figure", "miou"): _mean(iou if evidence.plan.background_counts else iou[:, 1:])}
    if evidence.plan.background:
        found |= {("figure", "fb_iou"): _argmax_fb(group, weights), ("figure", "background_iou"): iou[:, 0]}
    present = group.counts[:, 1, 1:].sum(axis=0) > 0
    return found | {("class", str(i)): iou[:, k + 1] for k, i in enumerate(group.class_ids) if present[k]}


def _unseen_and_seen(evidence: Evidence, argmax: Mapping[str, Float[np.ndarray, "draws c"]]) -> dict[Key, Values]:
    unseen = _mean(argmax["unseen"][:, 1:])
    found: dict[Key, Values] = {
        ("figure", "argmax_miou"): unseen,
        ("figure", "background_iou"): argmax["unseen"][:, 0],
    }
    ids = evidence.groups["unseen"].class_ids
    found |= {("argmax", str(i)): argmax["unseen"][:, k + 1] for k, i in enumerate(ids)}
    if "seen" in argmax:
        seen = _mean(argmax["seen"][:, 1:])
        found["figure", "seen_argmax_miou"] = seen
        found["figure", "harmonic"] = _divide(2 * seen * unseen, seen + unseen, empty=0.0)
    return found


def _fold_iou(rows: Rows, weights: Weights) -> tuple[Int[np.ndarray, "c"], Float[np.ndarray, "draws c"], Values]:
    """(class ids, foreground IoU per class, FB-IoU) of (image, class) rows under image weights."""
    ids, column = np.unique(rows.class_id, return_inverse=True)
    table = np.zeros((weights.shape[1], len(ids), 4))
    np.add.at(table, (rows.image, column), rows.values)
    sums = (weights @ table.reshape(len(table), -1)).reshape(len(weights), len(ids), 4)
    total = sums.sum(axis=1)
    fb = (_divide(total[:, 0], total[:, 1]) + _divide(total[:, 2], total[:, 3])) / 2
    return ids, _divide(sums[..., 2], sums[..., 3]), fb


def _argmax_iou(group: Group, weights: Weights) -> Float[np.ndarray, "draws c"]:
    """IoU per class (background first); NaN where the drawn images hold no such pixel."""
    inside, truth, guess = _sums(group, weights)
    return np.where(truth > 0, _divide(inside, truth + guess - inside), np.nan)


def _argmax_fb(group: Group, weights: Weights) -> Values:
    """Mean IoU of background and of "any class", of an argmax."""
    inside, truth, guess = _sums(group, weights)
    total = truth.sum(axis=1)
    both = total - truth[:, 0] - guess[:, 0] + inside[:, 0]
    background = _divide(inside[:, 0], truth[:, 0] + guess[:, 0] - inside[:, 0])
    return (background + _divide(both, total - inside[:, 0])) / 2


def _sums(group: Group, weights: Weights) -> Float[np.ndarray, "3 draws c"]:
    count, _, classes = group.counts.shape
    sums = weights @ group.counts.reshape(count, -1).astype(float)
    return sums.reshape(len(weights), 3, classes).transpose(1, 0, 2)


def _weighted(rows: Rows, column: int, weights: Weights) -> Values:
    per_row = weights[:, rows.image]
    return _divide(per_row @ rows.values[:, column], per_row.sum(axis=1))


def _mean(iou: Float[np.ndarray, "draws c"]) -> Values:
    """Mean over the classes that were drawn; NaN where none was."""
    known = ~np.isnan(iou)
    return _divide(np.where(known, iou, 0).sum(axis=1), known.sum(axis=1))


def _divide(above: np.ndarray, below: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """`above / below`, `empty` where below is 0."""
    result = np.full(np.broadcast(above, below).shape, empty)
    return np.divide(above, below, out=result, where=below > 0)
