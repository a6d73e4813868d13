"""Whether two runs differ by more than chance: the same images, one paired test a figure.

Two answers to one question. The interval of the difference comes from the bootstrap: images are drawn with replacement,
the same ones for both runs. The p-value comes from approximate randomisation (Noreen 1989): were the runs equally good,
it would not matter which of the two gave which answer, so the answers of each image are exchanged by the toss of a coin
and the difference is taken anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fusioner.errors import FusionerError
from fusioner.evaluation.bootstrap import CHUNK, Figure, Key, Weights, image_weights, measure_folds
from fusioner.evaluation.results import Evidence, Group, Rows
from fusioner.evaluation.store import Stored

SETTINGS = ("protocol", "threshold", "squash", "background", "others")


@dataclass(frozen=True)
class Difference:
    """One figure of both runs, per cent.

    Attributes:
        first, second: of run A and run B; NaN where one of them has none.
        change: second - first with the 95 % interval of the paired bootstrap.
        p: of the two-sided randomisation test, at least 1 / (draws + 1).
    """

    first: float
    second: float
    change: Figure
    p: float

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05 and the interval excludes 0."""
        return self.p < 0.05 and (self.change.low > 0 or self.change.high < 0)


@dataclass
class Comparison:
    """Differences of B from A.

    Attributes:
        figures: by the names of `report.MEASURES`; per_class, argmax_per_class: by class id, p-values Holm-adjusted
            over the classes of a table.
        images: how many images both runs saw.
        notes: what a reader must know.
    """

    dataset: str
    classes: Sequence[str]
    images: int
    figures: dict[str, Difference]
    per_class: dict[int, Difference]
    argmax_per_class: dict[int, Difference]
    notes: list[str] = field(default_factory=list)


def compare(a: Stored, b: Stored, draws: int = 2000, seed: int = 0) -> Comparison:
    """Test every figure that both runs have.

    Raises:
        FusionerError: they evaluate different data sets or folds, share no image, or asked different pairs of one.
    """
    folds = _same_folds(a, b)
    pairs = [_same_images(a.folds[fold], b.folds[fold]) for fold in folds]
    firsts, seconds = [one for one, _ in pairs], [one for _, one in pairs]
    images = sorted({image for one in firsts for image in one.plan.images})
    drawn = _bootstrap(firsts, seconds, images, draws, seed)
    swapped = _randomised(firsts, seconds, images, draws, seed)
    found = {key: _difference(*drawn[key], swapped[key]) for key in drawn}
    return Comparison(
        a.dataset,
        a.classes,
        len(images),
        {name: one for (kind, name), one in found.items() if kind == "figure"},
        _holm({int(name): one for (kind, name), one in found.items() if kind == "class"}),
        _holm({int(name): one for (kind, name), one in found.items() if kind == "argmax"}),
        _notes(a, b, folds, len(images)),
    )


def _same_folds(a: Stored, b: Stored) -> list[int | None]:
    if a.dataset != b.dataset or list(a.classes) != list(b.classes):
        raise FusionerError(f"{a.folder} evaluates {a.dataset}, {b.folder} {b.dataset}: compare runs on one data set")
    folds = [fold for fold in a.folds if fold in b.folds]
    if not folds:
        raise FusionerError(f"{a.folder} and {b.folder} have no fold in common: evaluate both on the same --fold")
    return folds


def _same_images(a: Evidence, b: Evidence) -> tuple[Evidence, Evidence]:
    """Both on their common images in one order, with the same rows."""
    if {name: group.class_ids for name, group in a.groups.items()} != {n: g.class_ids for n, g in b.groups.items()}:
        raise FusionerError("the two runs prompted different classes: evaluate both with the same settings")
    common = sorted(set(a.plan.images) & set(b.plan.images))
    if not common:
        raise FusionerError("the two runs share no image: evaluate both on the same split with the same --limit")
    a, b = only(a, common), only(b, common)
    if _keys(a.pairs) != _keys(b.pairs):
        raise FusionerError("the two runs asked different pairs: evaluate both with the same --protocol and --seed")
    for table in ("blind", "absent"):  # absent prompts are drawn by an image's place in its run
        asked = set(_keys(getattr(a, table))) & set(_keys(getattr(b, table)))
        a, b = (replace(one, **{table: _rows(getattr(one, table), asked)}) for one in (a, b))
    return a, b


def only(evidence: Evidence, images: Sequence[str]) -> Evidence:
    """The evidence of some of its images, in the order given; the confusion of all stays."""
    place = {image: i for i, image in enumerate(evidence.plan.images)}
    chosen = np.array([place[image] for image in images], int)
    moved = np.full(len(place), -1)
    moved[chosen] = np.arange(len(chosen))

    def rows(table: Rows) -> Rows:
        keep = np.flatnonzero(moved[table.image] >= 0)
        image, class_id = moved[table.image[keep]], table.class_id[keep]
        order = np.lexsort((class_id, image))
        return Rows(image[order], class_id[order], table.values[keep][order])

    groups = {name: Group(g.class_ids, g.counts[chosen], g.confusion) for name, g in evidence.groups.items()}
    plan = replace(evidence.plan, images=tuple(images))
    return Evidence(plan, rows(evidence.pairs), rows(evidence.blind), rows(evidence.absent), groups, [], [])


def _keys(rows: Rows) -> list[tuple[int, int]]:
    return list(zip(rows.image.tolist(), rows.class_id.tolist(), strict=True))


def _rows(rows: Rows, asked: set[tuple[int, int]]) -> Rows:
    keep = np.array([key in asked for key in _keys(rows)], bool)
    values = rows.values[keep] if asked else np.zeros((0, 1))
    return Rows(rows.image[keep], rows.class_id[keep], values)


def _bootstrap(
    firsts: list[Evidence], seconds: list[Evidence], images: Sequence[str], draws: int, seed: int
) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
    """Both runs' figures, themselves first and then under the same draws of images."""
    parts = [
        (measure_folds(firsts, images, weights), measure_folds(seconds, images, weights))
        for weights in image_weights(len(images), draws, seed)
    ]
    keys = [key for key in parts[0][0] if key in parts[0][1]]
    return {key: tuple(np.concatenate([part[i][key] for part in parts]) for i in (0, 1)) for key in keys}  # pyright: ignore


def _randomised(
    firsts: list[Evidence], seconds: list[Evidence], images: Sequence[str], draws: int, seed: int
) -> dict[Key, np.ndarray]:
    """Differences after exchanging the runs' answers on a random half of the images each time."""
    both = [_side_by_side(a, b) for a, b in zip(firsts, seconds, strict=True)]
    names = [f"a/{image}" for image in images] + [f"b/{image}" for image in images]
    rng, parts = np.random.default_rng((seed, 1)), []
    for start in range(0, draws, CHUNK):
        kept: Weights = rng.integers(0, 2, (min(CHUNK, draws - start), len(images))).astype(float)
        here = measure_folds(both, names, np.concatenate([kept, 1 - kept], axis=1))
        there = measure_folds(both, names, np.concatenate([1 - kept, kept], axis=1))
        parts.append({key: there[key] - here[key] for key in here})
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _side_by_side(a: Evidence, b: Evidence) -> Evidence:
    """One run of twice the images: A's answers, then B's."""
    size = len(a.plan.images)

    def rows(one: Rows, other: Rows) -> Rows:
        image = np.concatenate([one.image, other.image + size])
        return Rows(image, np.concatenate([one.class_id, other.class_id]), np.concatenate([one.values, other.values]))

    groups = {
        name: Group(g.class_ids, np.concatenate([g.counts, b.groups[name].counts]), g.confusion)
        for name, g in a.groups.items()
    }
    names = tuple(f"a/{image}" for image in a.plan.images) + tuple(f"b/{image}" for image in b.plan.images)
    tables = rows(a.pairs, b.pairs), rows(a.blind, b.blind), rows(a.absent, b.absent)
    return Evidence(replace(a.plan, images=names), *tables, groups, [], [])


def _difference(first: np.ndarray, second: np.ndarray, swapped: np.ndarray) -> Difference:
    """From fractions to per cent."""
    change = Figure.of(100 * (second - first))
    known = 100 * np.abs(swapped[~np.isnan(swapped)])
    as_large = len(known) if np.isnan(change.value) else int((known >= abs(change.value) - 1e-9).sum())
    return Difference(100 * float(first[0]), 100 * float(second[0]), change, (as_large + 1) / (len(known) + 1))


def _holm(table: Mapping[int, Difference]) -> dict[int, Difference]:
    """Holm's step-down adjustment: the chance of one false finding among all classes stays below p."""
    order = sorted(table, key=lambda i: table[i].p)
    adjusted, floor = {}, 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, table[i].p * (len(order) - rank)))
        adjusted[i] = replace(table[i], p=floor)
    return {i: adjusted[i] for i in table}


def _notes(a: Stored, b: Stored, folds: Sequence[int | None], images: int) -> list[str]:
    notes: list[str] = []
    for name in SETTINGS:
        values: list[Any] = [getattr(run.folds[folds[0]].plan, name) for run in (a, b)]
        if values[0] != values[1]:
            notes.append(f"A has {name} {values[0]}, B {values[1]}: the difference is also one of settings")
    for letter, run in (("A", a), ("B", b)):
        seen = len({image for fold in folds for image in run.folds[fold].plan.images})
        if seen > images:
            notes.append(f"{letter} saw {seen} images; the {images} that both saw are compared")
        if left := [str(fold) for fold in run.folds if fold not in folds]:
            notes.append(f"{letter} also has fold {', '.join(left)}, which the other has not")
    return notes
