"""Test whether two runs differ by more than chance, on the same images.

The interval of a difference is a paired bootstrap: images are drawn with replacement, the same ones for both runs.
The p-value is from approximate randomisation (Noreen 1989): if the runs were equally good, exchanging their
predictions on random images would not matter, so the predictions of each image are exchanged with probability 1/2 and
the difference is computed again.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType

from fusioner.errors import FusionerError
from fusioner.evaluation.bootstrap import CHUNK, Estimate, MeasureKey, Weights, measure_folds, of_kind, sample_weights
from fusioner.evaluation.report import MEASURES, Markup, Table, format_estimate, html_list, html_page, write_files
from fusioner.evaluation.results import TABLES, Counts, PromptCounts, SavedRun

SETTINGS = ("protocol", "threshold", "eval_size", "background", "background_prompts")

_HEAD = ("", "A", "B", "B - A [95 %]", "p", "verdict")
_LOWER_IS_BETTER = ("false_positive_area", "prompt_ablated_miou")
_WIDTH = 300  # px on each side of zero in the plot of a difference


@dataclass
class Difference:
    """One measure of both runs, in per cent.

    Attributes:
        a, b: of run A and run B; NaN if not measured.
        change: b - a with the 95 % interval of the paired bootstrap.
        p: of the two-sided randomisation test, at least 1 / (n_resamples + 1).
        significant: p is below 0.05 and the interval excludes 0.
    """

    a: float
    b: float
    change: Estimate
    p: float
    significant: bool = field(init=False)

    def __post_init__(self) -> None:
        self.significant = self.p < 0.05 and (self.change.low > 0 or self.change.high < 0)


@dataclass
class Comparison:
    """Differences of B from A.

    Attributes:
        a, b: folders of the runs; images: number of images that both evaluated.
        measures: by the names of `report.MEASURES`; per_class, argmax_per_class: by class name, p-values Holm-adjusted
            over the classes of a table.
        notes: remarks for the reader.
    """

    a: str
    b: str
    dataset: str
    images: int
    measures: dict[str, Difference]
    per_class: dict[str, Difference]
    argmax_per_class: dict[str, Difference]
    notes: list[str]


def compare(a: SavedRun, b: SavedRun, n_resamples: int = 2000, seed: int = 0) -> Comparison:
    """Test every measure that both runs have; FusionerError unless they share the data set, folds, pairs and images."""
    if a.dataset != b.dataset or list(a.classes) != list(b.classes):
        raise FusionerError(f"{a.folder} evaluates {a.dataset}, {b.folder} {b.dataset}: compare runs on one data set")
    folds = [fold for fold in a.folds if fold in b.folds]
    if not folds:
        raise FusionerError(f"{a.folder} and {b.folder} have no fold in common: evaluate both on the same --fold")
    aligned = [_align(a.folds[fold], b.folds[fold]) for fold in folds]
    images = sorted({image for first, _ in aligned for image in first.plan.images})
    weights = sample_weights(len(images), n_resamples, seed)
    # Values first, then those of the same samples of images.
    first, second = (
        _concatenate(measure_folds(runs, images, chunk) for chunk in weights) for runs in zip(*aligned, strict=True)
    )
    exchanged = _randomize(aligned, images, n_resamples, seed)
    differences = {key: _difference(first[key], second[key], exchanged[key]) for key in first if key in second}
    per_class, argmax_per_class = (
        _adjust({a.classes[i]: difference for i, difference in of_kind(differences, kind).items()})
        for kind in ("class", "argmax")
    )
    return Comparison(
        str(a.folder),
        str(b.folder),
        a.dataset,
        len(images),
        of_kind(differences, "measure"),
        per_class,
        argmax_per_class,
        _notes(a, b, folds, len(images)),
    )


def _align(a: Counts, b: Counts) -> tuple[Counts, Counts]:
    """Restrict both to their common images and prompts, in the same order."""
    classes = [{name: group.class_ids for name, group in counts.groups.items()} for counts in (a, b)]
    if classes[0] != classes[1]:
        raise FusionerError("the two runs prompted different classes: evaluate both with the same settings")
    images = sorted(set(a.plan.images) & set(b.plan.images))
    if not images:
        raise FusionerError("the two runs share no image: evaluate both on the same split with the same --limit")
    a, b = select_images(a, images), select_images(b, images)
    if _prompts(a.pairs) != _prompts(b.pairs):
        raise FusionerError("the two runs have different pairs: evaluate both with the same --protocol and --seed")
    # Absent classes are drawn by an image's position in its run.
    common = set(_prompts(a.presence)) & set(_prompts(b.presence))
    rows = [np.array([prompt in common for prompt in _prompts(run.presence)], bool) for run in (a, b)]
    return replace(a, presence=a.presence.take(rows[0])), replace(b, presence=b.presence.take(rows[1]))


def select_images(counts: Counts, images: Sequence[str]) -> Counts:
    """Return the counts of the given images in that order; the confusion matrices keep all images."""
    position = {image: i for i, image in enumerate(counts.plan.images)}
    chosen = np.array([position[image] for image in images], int)
    new_index = np.full(len(position), -1)
    new_index[chosen] = np.arange(len(chosen))

    def select(table: PromptCounts) -> PromptCounts:
        table = table._replace(image=new_index[table.image]).take(new_index[table.image] >= 0)
        return table.take(np.lexsort((table.class_id, table.image)))

    groups = {name: replace(group, counts=group.counts[chosen]) for name, group in counts.groups.items()}
    tables: dict[str, Any] = {name: select(getattr(counts, name)) for name in TABLES}
    return Counts(replace(counts.plan, images=tuple(images)), groups=groups, **tables)


def _prompts(table: PromptCounts) -> list[tuple[int, int]]:
    return list(zip(table.image.tolist(), table.class_id.tolist(), strict=True))


def _randomize(
    aligned: Sequence[tuple[Counts, Counts]], images: Sequence[str], n_resamples: int, seed: int
) -> dict[MeasureKey, np.ndarray]:
    """Return differences after exchanging the runs' predictions on a random half of the images, each time anew."""
    joined = [_join(a, b) for a, b in aligned]
    names = [f"{run}/{image}" for run in "ab" for image in images]
    rng, parts = np.random.default_rng((seed, 1)), []
    for start in range(0, n_resamples, CHUNK):
        unchanged: Weights = rng.integers(0, 2, (min(CHUNK, n_resamples - start), len(images))).astype(float)
        first = measure_folds(joined, names, np.concatenate([unchanged, 1 - unchanged], axis=1))
        second = measure_folds(joined, names, np.concatenate([1 - unchanged, unchanged], axis=1))
        parts.append({key: second[key] - first[key] for key in first})
    return _concatenate(parts)


def _concatenate(parts: Iterable[dict[MeasureKey, np.ndarray]]) -> dict[MeasureKey, np.ndarray]:
    parts = list(parts)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _join(a: Counts, b: Counts) -> Counts:
    """Return one run of twice the images: those of A, then those of B."""
    size = len(a.plan.images)

    def join(first: PromptCounts, second: PromptCounts) -> PromptCounts:
        second = second._replace(image=second.image + size)
        return PromptCounts(*map(np.concatenate, zip(first, second, strict=True)))

    groups = {
        name: replace(group, counts=np.concatenate([group.counts, b.groups[name].counts]))
        for name, group in a.groups.items()
    }
    names = (*(f"a/{image}" for image in a.plan.images), *(f"b/{image}" for image in b.plan.images))
    tables: dict[str, Any] = {name: join(getattr(a, name), getattr(b, name)) for name in TABLES}
    return Counts(replace(a.plan, images=names), groups=groups, **tables)


def _difference(first: np.ndarray, second: np.ndarray, exchanged: np.ndarray) -> Difference:
    """Convert fractions to per cent and count the exchanged differences that are at least as large."""
    change = Estimate.of(100 * (second - first))
    known = 100 * np.abs(exchanged[~np.isnan(exchanged)])
    as_large = len(known) if np.isnan(change.value) else int((known >= abs(change.value) - 1e-9).sum())
    return Difference(100 * float(first[0]), 100 * float(second[0]), change, (as_large + 1) / (len(known) + 1))


def _adjust(differences: Mapping[str, Difference]) -> dict[str, Difference]:
    """Apply Holm's step-down adjustment: the probability of one false finding among all classes stays below p."""
    adjusted, floor = dict(differences), 0.0
    for rank, name in enumerate(sorted(differences, key=lambda name: differences[name].p)):
        floor = max(floor, min(1.0, differences[name].p * (len(differences) - rank)))
        adjusted[name] = replace(differences[name], p=floor)
    return adjusted


def _notes(a: SavedRun, b: SavedRun, folds: Sequence[int | None], images: int) -> list[str]:
    notes: list[str] = []
    for name in SETTINGS:
        first, second = (getattr(run.folds[folds[0]].plan, name) for run in (a, b))
        if first != second:
            notes.append(f"A has {name} {first}, B {second}: the difference is also one of settings")
    for letter, run in (("A", a), ("B", b)):
        evaluated = len({image for fold in folds for image in run.folds[fold].plan.images})
        if evaluated > images:
            notes.append(f"{letter} evaluated {evaluated} images; the {images} in both runs are compared")
        if left := [str(fold) for fold in run.folds if fold not in folds]:
            notes.append(f"{letter} also has fold {', '.join(left)}, which the other run lacks")
    return notes


def terminal(found: Comparison) -> RenderableType:
    """Return the tables, legend and notes for a rich console."""
    tables = [table.to_rich() for table in _tables(found)]
    return Group(*tables, *_legend(found), *(f"note: {note}" for note in found.notes))


def write_comparison(folder: Path, found: Comparison) -> list[Path]:
    """Write compare.json, compare.md and compare.html into `folder` and return their paths."""
    remarks = [*_legend(found), *found.notes]
    bullets = "\n".join(f"- {line}" for line in remarks)
    measures, classes = _tables(found)
    markdown = [f"# {_title(found)}", bullets, measures.to_markdown(), classes.to_markdown()]
    html = [html_list(remarks), measures.to_html(), "<h2>Classes</h2>", classes.to_html()]
    values = {"generator": "Fusioner", "unit": "per cent", **asdict(found, dict_factory=_nan_to_none)}
    contents = {
        "compare.json": json.dumps(values, indent=2, allow_nan=False) + "\n",
        "compare.md": "\n\n".join(markdown) + "\n",
        "compare.html": html_page(_title(found), html),
    }
    return write_files(folder, contents)


def _nan_to_none(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in pairs}


def _tables(found: Comparison) -> list[Table]:
    """Return the tables of measures and classes."""
    measures, classes = [], []
    for name, (label, _) in MEASURES.items():
        if name in found.measures:
            measures.append((label, found.measures[name], name in _LOWER_IS_BETTER))
    for name in {**found.argmax_per_class, **found.per_class}:
        for differences, suffix in ((found.per_class, ""), (found.argmax_per_class, ", multi-class")):
            if name in differences:
                classes.append((name + suffix, differences[name], False))
    tables = []
    for title, entries in ((_title(found), measures), ("classes", classes)):
        rows = [[label, *_cells(difference, lower)] for label, difference, lower in entries]
        bold = [number for number, (_, difference, _) in enumerate(entries) if difference.significant]
        changes = [difference.change for _, difference, _ in entries]
        limit = float(np.nanmax([1.0, *(abs(end) for change in changes for end in (change.low, change.high))]))
        plots = [_plot(difference, limit) for _, difference, _ in entries]
        head = f"lower in B | higher in B (by up to {limit:.1f} points)"
        tables.append(Table(_HEAD, rows, title, (0, len(_HEAD) - 1), bold, plots=plots, plot_head=head))
    return tables


def _cells(difference: Difference, lower_is_better: bool) -> list[str]:
    sign = "+" if difference.change.value > 0 else ""
    values = ["-" if math.isnan(value) else f"{value:.1f}" for value in (difference.a, difference.b)]
    p = f"{difference.p:.3f}" if difference.p >= 0.001 else f"{difference.p:.1g}"
    verdict = "not significant"
    if difference.significant:
        verdict = "B better" if (difference.change.value > 0) != lower_is_better else "A better"
    return [*values, sign + format_estimate(difference.change), p, verdict]


def _title(found: Comparison) -> str:
    return f"{found.dataset}: {found.images} images evaluated by both runs"


def _legend(found: Comparison) -> list[str]:
    method = "interval: paired bootstrap over images; p: approximate randomisation, Holm-adjusted over classes"
    return [f"A: {found.a}", f"B: {found.b}", f"per cent; {method}"]


def _plot(difference: Difference, limit: float) -> Markup:
    """Draw a difference as a dot with its interval, on an axis of -limit to limit points."""
    change, scale = difference.change, _WIDTH / limit
    low, value, high = (_WIDTH + scale * (0.0 if math.isnan(v) else v) for v in (change.low, change.value, change.high))
    colour = "#2f6fe0" if difference.significant else "#888"
    return Markup(
        f"<svg width={2 * _WIDTH} height=16 role=img aria-label='{change.value:.1f} points'>"
        f"<line x1={_WIDTH} x2={_WIDTH} y1=0 y2=16 stroke=currentColor opacity=.35 />"
        f"<line x1={low:.1f} x2={high:.1f} y1=8 y2=8 stroke='{colour}' stroke-width=3 />"
        f"<circle cx={value:.1f} cy=8 r=5 fill='{colour}' /></svg>"
    )
