"""Evaluate a predictor on a data set: visit every image once, count pixels, summarize.

Counts are summed over images before dividing, as in the PASCAL-5i and COCO-20i papers (HSNet's evaluator), never
averaged per image.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from fusioner.data.base import Item, SegmentationData
from fusioner.data.folds import FOLD_DATASETS
from fusioner.encoders.prompt_templates import NEUTRAL
from fusioner.evaluation.bootstrap import Summary, summarize
from fusioner.evaluation.predictor import Predictor
from fusioner.evaluation.protocols import DEFAULT_OPTIONS, EvaluationOptions, make_plans
from fusioner.evaluation.results import IGNORED, Counts, Example, GroupCounts, PromptCounts, PromptPlan
from fusioner.postprocess import decide_logits, sigmoid, upsample
from fusioner.progress import Track, no_progress

_MAX_MATRIX = 100  # classes; larger confusion matrices are left out of metrics.json
_EXAMPLES = 12  # best and worst predictions to keep


@dataclass
class FoldResult:
    """Counts and measures of one fold, and its coverage: the pairs listed and those on disk (None: no list)."""

    counts: Counts
    summary: Summary
    coverage: tuple[int, int] | None


@dataclass
class EvaluationResult:
    """Results by fold (None: a data set without folds) and their mean, and remarks for the reader."""

    data: SegmentationData
    options: EvaluationOptions
    folds: dict[int | None, FoldResult]
    summary: Summary
    notes: list[str] = field(default_factory=list)


def evaluate(
    predictor: Predictor,
    data: SegmentationData,
    options: EvaluationOptions = DEFAULT_OPTIONS,
    track: Track = no_progress,
) -> EvaluationResult:
    """Evaluate a predictor on all folds; `options.threshold` is a number here.

    Raises FusionerError as `make_plans`, and for an unreadable image or mask.
    """
    results: dict[int | None, FoldResult] = {}
    for fold, (plan, coverage) in make_plans(data, options).items():
        counter = _PixelCounter(predictor, data, plan)
        items = [data.by_id[image] for image in plan.images]
        for index, item in enumerate(track(items, data.name if fold is None else f"fold {fold}")):
            counter.visit(index, item)
        counts = counter.counts()
        results[fold] = FoldResult(counts, summarize([counts], options.n_resamples, options.seed), coverage)
    summary = next(iter(results.values())).summary
    if len(results) > 1:
        summary = summarize([result.counts for result in results.values()], options.n_resamples, options.seed)
    return EvaluationResult(data, options, results, summary, list(data.problems))


def to_metrics(result: EvaluationResult) -> dict[str, Any]:
    """Return the content of metrics.json without its provenance; values in per cent."""
    names = result.data.classes
    plan = next(iter(result.folds.values())).counts.plan
    content: dict[str, Any] = {
        "dataset": result.data.name,
        "protocol": plan.protocol,
        "unit": "per cent",
        **_summary_metrics(result.summary, names),
    }
    if len(result.folds) > 1:
        content["folds"] = {
            str(fold): _summary_metrics(fold_result.summary, names) for fold, fold_result in result.folds.items()
        }
    of_folds = () if result.data.name in FOLD_DATASETS else ("folds", "images")
    settings = {name: value for name, value in asdict(result.options).items() if name not in ("protocol", *of_folds)}
    content["settings"] = settings | {"neutral_prompt": NEUTRAL if plan.pairs else None}
    content["missing"] = {
        str(fold): dict(zip(("listed", "present"), fold_result.coverage, strict=True))
        for fold, fold_result in result.folds.items()
        if fold_result.coverage
    }
    content["confusion"] = {
        ("" if fold is None else f"fold {fold} ") + name: {
            "labels": ["background", *(names[i] for i in group.class_ids)],
            "rows_truth_columns_prediction": group.confusion.tolist(),
        }
        for fold, fold_result in result.folds.items()
        for name, group in fold_result.counts.groups.items()
        if name != "seen" and len(group.class_ids) <= _MAX_MATRIX
    }
    return content | {"notes": result.notes}


def _summary_metrics(summary: Summary, names: Sequence[str]) -> dict[str, Any]:
    measures = {name: estimate.to_json() for name, estimate in summary.measures.items()}
    per_class = {names[i]: estimate.to_json() for i, estimate in summary.per_class.items()}
    argmax_per_class = {names[i]: estimate.to_json() for i, estimate in summary.argmax_per_class.items()}
    return {
        **{name: value["value"] for name, value in measures.items()},
        "per_class": {name: value["value"] for name, value in per_class.items()},
        "argmax_per_class": {name: value["value"] for name, value in argmax_per_class.items()},
        "images": summary.images,
        "pairs": summary.pairs,
        "absent_prompts": summary.absent_prompts,
        "intervals": {name: [value["low"], value["high"]] for name, value in measures.items()},
        "per_class_intervals": {name: [value["low"], value["high"]] for name, value in per_class.items()},
    }


def binary_counts(
    prediction: Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"],
    target: Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"],
    ignore: Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"] | None = None,
) -> Int64[Tensor, "2 2"]:
    """Count pixels of a binary decision: rows background and foreground, columns intersection and union.

    Non-zero is foreground in `prediction` and `target`, and not counted in `ignore`.
    """
    predicted, wanted = prediction.bool(), target.bool()
    valid = torch.ones_like(wanted) if ignore is None else ~ignore.bool()
    both, either = (predicted & wanted & valid).sum(), ((predicted | wanted) & valid).sum()
    total = valid.sum()
    return torch.stack([torch.stack([total - either, total - both]), torch.stack([both, either])])


def confusion_matrix(
    prediction: Integer[Tensor, "*b h w"], target: Integer[Tensor, "*b h w"], classes: int, ignore: int = 255
) -> Int64[Tensor, "c c"]:
    """Count pixels by (true id, predicted id), both in 0..classes-1, without pixels whose target is `ignore`."""
    truth, predicted = target.reshape(-1).long(), prediction.reshape(-1).long()
    valid = truth != ignore
    cells = torch.bincount(truth[valid] * classes + predicted[valid], minlength=classes * classes)
    return cells.reshape(classes, classes)


class _PixelCounter:
    """Accumulates the counts of a plan, image by image; each is read and encoded once for all its prompts."""

    def __init__(self, predictor: Predictor, data: SegmentationData, plan: PromptPlan) -> None:
        self.predictor, self.data, self.plan = predictor, data, plan
        self.listed: dict[str, Counter[int]] = {}
        for image, class_id in plan.pairs:
            self.listed.setdefault(image, Counter())[class_id] += 1
        self.pairs: list[tuple[int, int, list[float]]] = []
        self.presence: list[tuple[int, int, list[float]]] = []
        self.group_counts: dict[str, list[np.ndarray]] = {name: [] for name in plan.groups}
        self.confusion = {name: np.zeros((len(ids) + 1,) * 2, np.int64) for name, ids in plan.groups.items()}
        self.best: list[Example] = []
        self.worst: list[Example] = []
        self.encoded: Any = None
        self.size = (0, 0)
        self.cache: dict[str, Float[np.ndarray, "h w"]] = {}

    @torch.inference_mode()
    def visit(self, index: int, item: Item) -> None:
        """Count the pairs, the neutral prompt, absent classes, and the groups of one image."""
        rgb, stored = self.data.read(item)
        self.encoded = self.predictor.encode(rgb, None if item.tiles else item.image)
        mask = torch.from_numpy(stored.astype(np.int64))
        if self.plan.eval_size:
            side = self.plan.eval_size
            mask = torch.nn.functional.interpolate(mask[None, None].double(), (side, side), mode="nearest")[0, 0].long()
        self.size, self.cache = (mask.shape[0], mask.shape[1]), {}
        self._count_pairs(index, item, mask)
        self._count_presence(index, set(np.unique(stored).tolist()), mask)
        for name in self.plan.groups:
            self._count_group(name, item, mask, self._predict_group(name, item))

    def _count_pairs(self, index: int, item: Item, mask: Tensor) -> None:
        listed = self.listed.get(item.id)
        if not listed:
            return
        ignored = mask == self.data.ignore
        neutral = self._predict(NEUTRAL)
        for class_id, times in sorted(listed.items()):
            positive = self._predict(self.data.prompts[class_id])
            counts, ablated = (binary_counts(found, mask == class_id, ignored) for found in (positive, neutral))
            self.pairs += [(index, class_id, torch.cat([counts, ablated]).flatten().tolist())] * times
            if "all" not in self.plan.groups:
                truth = (mask == class_id).long().masked_fill(ignored, IGNORED)
                self._add_example(float(counts[1, 0] / counts[1, 1].clamp(min=1)), item, (class_id,), positive, truth)

    def _count_presence(self, index: int, present: set[int], mask: Tensor) -> None:
        if not self.plan.absent:
            return
        absent = [i for i in self.plan.prompted if i not in present]
        drawn = np.random.default_rng((self.plan.seed, index)).permutation(absent)[: self.plan.absent].tolist()
        valid = mask != self.data.ignore
        for class_id in (*sorted(drawn), *sorted(present.intersection(self.plan.prompted))):
            positive = self._predict(self.data.prompts[class_id]) & valid
            share = float(positive.sum() / valid.sum().clamp(min=1))
            self.presence.append((index, class_id, [float(class_id in present), share, float(positive.any())]))

    def _predict(self, label: str) -> Bool[Tensor, "H W"]:
        """Return the pixels of a label prompted alone."""
        return torch.from_numpy(sigmoid(upsample(self._logits([label]), self.size)[0]) > self.plan.threshold)

    def _predict_group(self, name: str, item: Item) -> Integer[Tensor, "H W"]:
        """Return the winning class of a group at each pixel, numbered from 1 as the group lists them; 0: background."""
        ids, extra = self.plan.groups[name], self.plan.background_prompts
        numbers = range(1, len(ids) + 1)
        if self.plan.listed_only:
            numbers = [k for k in numbers if ids[k - 1] in self.listed[item.id]]
        logits = self._logits([*(self.data.prompts[ids[k - 1]] for k in numbers), *extra])
        winners, _ = decide_logits(logits, self.size, self.plan.threshold, self.plan.background and not extra)
        return torch.tensor([0, *numbers, *(0 for _ in extra)])[torch.from_numpy(winners).long()]

    def _logits(self, labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Return the logits of the current image; those of independent labels are computed once each."""
        if not self.predictor.independent:
            return np.asarray(self.predictor.logits(self.encoded, labels))
        if new := [label for label in labels if label not in self.cache]:
            self.cache |= dict(zip(new, np.asarray(self.predictor.logits(self.encoded, new)), strict=True))
        return np.stack([self.cache[label] for label in labels])

    def _count_group(self, name: str, item: Item, mask: Tensor, prediction: Tensor) -> None:
        ids = self.plan.groups[name]
        table = torch.zeros(65536, dtype=torch.int64)  # classes outside the group are background here
        table[list(ids)] = torch.arange(1, len(ids) + 1)
        table[self.data.ignore] = IGNORED
        truth = table[mask]
        confusion = confusion_matrix(prediction, truth, len(ids) + 1, ignore=IGNORED)
        counts = torch.stack([confusion.diagonal(), confusion.sum(dim=1), confusion.sum(dim=0)])
        self.group_counts[name].append(counts.numpy())
        self.confusion[name] += confusion.numpy()
        if name == "all" and counts[1, 1:].any():
            inside, in_truth, predicted = counts[:, 1:].double()
            score = (inside / (in_truth + predicted - inside))[in_truth > 0].mean()
            self._add_example(float(score), item, ids, prediction, truth)

    def _add_example(self, score: float, item: Item, ids: tuple[int, ...], prediction: Tensor, truth: Tensor) -> None:
        for examples, sign in ((self.best, -1), (self.worst, 1)):
            if len(examples) < _EXAMPLES or sign * score < sign * examples[-1].score:
                maps = (prediction.numpy().astype(np.uint16), truth.numpy().astype(np.uint16))
                examples.append(Example(score, item.id, ids, *maps))
                examples.sort(key=lambda example, sign=sign: sign * example.score)  # the earlier one wins ties
                del examples[_EXAMPLES:]

    def counts(self) -> Counts:
        groups = {
            name: GroupCounts(ids, np.stack(self.group_counts[name]), self.confusion[name])
            for name, ids in self.plan.groups.items()
        }
        pairs, presence = _to_columns(self.pairs, 8), _to_columns(self.presence, 3)
        return Counts(self.plan, pairs, presence, groups, self.best, self.worst)


def _to_columns(rows: list[tuple[int, int, list[float]]], width: int) -> PromptCounts:
    values = np.array([row[2] for row in rows], float).reshape(len(rows), width)
    return PromptCounts(np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], int), values)
