"""One evaluation from an opened data set to its figures, and the dict that becomes metrics.json."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fusioner.data.base import Item, PairCoverage, SegmentationData
from fusioner.data.folds import FOLD_DATASETS, FOLDS, SplitLists
from fusioner.errors import FusionerError
from fusioner.evaluation.bootstrap import Figure, Summary, summarise
from fusioner.evaluation.evaluator import collect
from fusioner.evaluation.predictor import Predictor
from fusioner.evaluation.protocols import Protocol, Scope, argmax_plan, fold_plan, limited, mosaic_plan, pairs_plan
from fusioner.evaluation.results import Evidence, Plan

LARGEST_MATRIX = 100
"""Larger confusion matrices stay out of metrics.json."""


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Attributes:
        folds: of pascal and coco; other sets have none.
        protocol, lists, scope: see `protocols`; other sets than pascal and coco have one protocol each.
        threshold: probability above which a pixel is taken.
        squash: score at this side in pixels instead of at each mask's own size.
        limit: at most so many images, spread evenly.
        seed: of the `hsnet` draws, the choice of absent prompts and the bootstrap; draws: bootstrap samples.
    """

    folds: tuple[int, ...] = FOLDS
    protocol: Protocol = "official"
    lists: SplitLists = "official"
    scope: Scope = "fold"
    threshold: float = 0.5
    squash: int | None = None
    limit: int | None = None
    seed: int = 0
    draws: int = 1000


@dataclass
class FoldOutcome:
    """One fold: what was seen, its figures, and which listed pairs are not on disk (None: no list)."""

    evidence: Evidence
    summary: Summary
    missing: PairCoverage | None


@dataclass
class Outcome:
    """An evaluation; sets without folds have the single fold None."""

    data: SegmentationData
    settings: Settings
    folds: dict[int | None, FoldOutcome]
    summary: Summary
    notes: list[str] = field(default_factory=list)


def plans(data: SegmentationData, settings: Settings) -> dict[int | None, tuple[Plan, PairCoverage | None]]:
    """The plans of an evaluation by fold.

    Raises:
        FusionerError: a fold none of whose pairs is on disk, an unknown protocol, or a limit below 1.
    """
    if data.name in FOLD_DATASETS:
        options = {"lists": settings.lists, "scope": settings.scope, "seed": settings.seed}
        made: dict[int | None, tuple[Plan, PairCoverage | None]] = {
            fold: fold_plan(data, fold, settings.protocol, **options) for fold in settings.folds
        }
    else:
        own = {"fss1000": pairs_plan, "mosaic4": mosaic_plan}
        made = {None: (own[data.name](data) if data.name in own else argmax_plan(data, settings.seed), None)}
    finished = {}
    for fold, (plan, missing) in made.items():
        shorter = plan if settings.limit is None else limited(plan, settings.limit)
        finished[fold] = replace(shorter, threshold=settings.threshold, squash=settings.squash), missing
    return finished


def evaluate(
    predictor: Predictor,
    data: SegmentationData,
    settings: Settings = Settings(),
    track: Callable[[Sequence[Item], int | None], Iterable[Item]] = lambda items, fold: items,
) -> Outcome:
    """Evaluate on every fold asked for; `track(items, fold)` may wrap the images of a fold in a progress bar.

    Raises:
        FusionerError: see `plans`; an unreadable image or mask.
    """
    todo = plans(data, settings)
    if not todo:
        raise FusionerError("no fold was asked for")
    done = {}
    for fold, (plan, missing) in todo.items():
        evidence = collect(predictor, data, plan, lambda items, fold=fold: track(items, fold))
        done[fold] = FoldOutcome(evidence, summarise([evidence], settings.draws, settings.seed), missing)
    if len(done) == 1:
        summary = next(iter(done.values())).summary
    else:
        summary = summarise([fold.evidence for fold in done.values()], settings.draws, settings.seed)
    return Outcome(data, settings, done, summary, list(data.problems))


def metrics(outcome: Outcome) -> dict[str, Any]:
    """Plain numbers of an outcome, figures in per cent: the content of metrics.json but for its provenance."""
    first = next(iter(outcome.folds.values()))
    content: dict[str, Any] = {
        "dataset": outcome.data.name,
        "protocol": first.evidence.plan.protocol,
        "unit": "per cent",
    }
    content |= _figures(outcome.summary, outcome.data.classes)
    if len(outcome.folds) > 1:
        names = outcome.data.classes
        content["folds"] = {str(fold): _figures(one.summary, names) for fold, one in outcome.folds.items()}
    content["settings"] = _settings(outcome)
    content["missing"] = {
        str(fold): {"listed": one.missing.listed, "present": one.missing.present}
        for fold, one in outcome.folds.items()
        if one.missing
    }
    content["confusion"] = {
        ("" if fold is None else f"fold {fold} ") + name: {
            "labels": ["background", *(outcome.data.classes[i] for i in group.class_ids)],
            "rows_truth_columns_prediction": group.confusion.tolist(),
        }
        for fold, one in outcome.folds.items()
        for name, group in one.evidence.groups.items()
        if name != "seen" and len(group.class_ids) <= LARGEST_MATRIX
    }
    return content | {"notes": outcome.notes}


def _figures(summary: Summary, names: Sequence[str]) -> dict[str, Any]:
    everything = summary.figures
    return {
        **{name: _number(figure.value) for name, figure in everything.items()},
        "per_class": {names[i]: _number(figure.value) for i, figure in summary.per_class.items()},
        "argmax_per_class": {names[i]: _number(figure.value) for i, figure in summary.argmax_per_class.items()},
        "images": summary.images,
        "pairs": summary.pairs,
        "absent_prompts": summary.absent_prompts,
        "intervals": {name: _interval(figure) for name, figure in everything.items()},
        "per_class_intervals": {names[i]: _interval(figure) for i, figure in summary.per_class.items()},
    }


def _settings(outcome: Outcome) -> dict[str, Any]:
    s = outcome.settings
    shared = {"threshold": s.threshold, "scored_at": s.squash or "native", "limit": s.limit, "seed": s.seed}
    plan = next(iter(outcome.folds.values())).evidence.plan
    own = {"blind_prompt": plan.blind if plan.pairs else None, "bootstrap_draws": s.draws}
    if outcome.data.name in FOLD_DATASETS:
        own |= {"folds": list(s.folds), "lists": s.lists, "honest_measures_on": s.scope}
    return shared | own


def _interval(figure: Figure) -> list[float | None]:
    return [_number(figure.low), _number(figure.high)]


def _number(value: float) -> float | None:
    """JSON knows no NaN."""
    return None if math.isnan(value) else round(value, 4)
