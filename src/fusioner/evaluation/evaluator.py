"""Visiting every image of a plan once and writing down pixel counts."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heappush, heappushpop
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from fusioner.data.base import Item, SegmentationData
from fusioner.evaluation.metrics import binary_counts, confusion
from fusioner.evaluation.predictor import Predictor
from fusioner.evaluation.results import IGNORED, Evidence, Example, Group, Plan, Rows
from fusioner.postprocess import decide_logits, upsample

Row = tuple[int, int, list[int] | list[float]]
"""Index of the image, class id, values."""


def collect(
    predictor: Predictor,
    data: SegmentationData,
    plan: Plan,
    track: Callable[[Sequence[Item]], Iterable[Item]] = iter,
    examples: int = 12,
) -> Evidence:
    """Visit the plan's images in order; each is read and encoded once, whatever the number of prompts.

    Args:
        track: wraps the list of images, for a progress bar.
        examples: how many best and worst answers to keep as pictures.

    Raises:
        FusionerError: an unreadable image or mask.
    """
    collector = _Collector(predictor, data, plan, examples)
    for index, item in enumerate(track([data.by_id[image] for image in plan.images])):
        collector.visit(index, item)
    return collector.evidence()


class _Collector:
    """The tables while they grow."""

    def __init__(self, predictor: Predictor, data: SegmentationData, plan: Plan, examples: int):
        self.predictor, self.data, self.plan = predictor, data, plan
        self.listed: dict[str, Counter[int]] = {}
        for image, class_id in plan.pairs:
            self.listed.setdefault(image, Counter())[class_id] += 1
        self.tables: dict[str, list[Row]] = {"pairs": [], "blind": [], "absent": []}
        self.counts: dict[str, list[np.ndarray]] = {name: [] for name in plan.groups}
        self.confusion = {name: np.zeros((len(ids) + 1,) * 2, np.int64) for name, ids in plan.groups.items()}
        self.best, self.worst = _Top(examples, 1), _Top(examples, -1)

    @torch.inference_mode()
    def visit(self, index: int, item: Item) -> None:
        """One image: its pairs, the blind prompt, absent classes, and the groups."""
        rgb, stored = self.data.read(item)
        encoded = self.predictor.encode(rgb, item.image if len(item.image_files) == 1 else None)
        mask = torch.from_numpy(stored.astype(np.int64))
        if self.plan.squash:
            mask = _squash(mask, self.plan.squash)

        answers = _Answers(self.predictor, encoded, (mask.shape[0], mask.shape[1]))
        self._ask_pairs(index, item, mask, answers)
        self._ask_absent(index, set(np.unique(stored).tolist()), mask, answers)
        for name in self.plan.groups:
            self._score_group(name, item, mask, self._ask_group(name, item, answers))

    def _ask_pairs(self, index: int, item: Item, mask: Tensor, answers: "_Answers") -> None:
        listed = self.listed.get(item.id)
        if not listed:
            return
        ignored = mask == self.data.ignore
        blind = None if self.plan.blind is None else answers.claimed(self.plan.blind, self.plan.threshold)
        for class_id, times in sorted(listed.items()):
            claimed = answers.claimed(self.data.prompts[class_id], self.plan.threshold)
            counts = binary_counts(claimed, mask == class_id, ignored)
            self.tables["pairs"] += [(index, class_id, counts.flatten().tolist())] * times
            if "all" not in self.plan.groups:
                truth = (mask == class_id).long().masked_fill(ignored, IGNORED)
                self._keep(float(counts[1, 0] / counts[1, 1].clamp(min=1)), item, (class_id,), claimed, truth)
            if blind is not None:
                earned = binary_counts(blind, mask == class_id, ignored).flatten().tolist()
                self.tables["blind"] += [(index, class_id, earned)] * times

    def _ask_absent(self, index: int, present: set[int], mask: Tensor, answers: "_Answers") -> None:
        absent = [i for i in self.plan.asked if i not in present]
        if not self.plan.absent or not absent:
            return
        rng = np.random.default_rng((self.plan.seed, index))
        valid = mask != self.data.ignore
        for class_id in sorted(rng.permutation(absent)[: self.plan.absent].tolist()):
            claimed = answers.claimed(self.data.prompts[class_id], self.plan.threshold) & valid
            share = float(claimed.sum() / valid.sum().clamp(min=1))
            self.tables["absent"].append((index, class_id, [share, float(not claimed.any())]))

    def _ask_group(self, name: str, item: Item, answers: "_Answers") -> Integer[Tensor, "H W"]:
        """Which class of a group wins where, numbered from 1 as the group lists them; 0 is background."""
        ids = self.plan.groups[name]
        numbers = range(1, len(ids) + 1)
        if self.plan.listed_only:
            numbers = [k for k in numbers if ids[k - 1] in self.listed[item.id]]
        labels = [self.data.prompts[ids[k - 1]] for k in numbers]
        others = self.plan.others
        winners = answers.decided([*labels, *others], self.plan.threshold, self.plan.background and not others)
        return torch.tensor([0, *numbers, *(0 for _ in others)])[winners.long()]

    def _score_group(self, name: str, item: Item, mask: Tensor, prediction: Tensor) -> None:
        ids = self.plan.groups[name]
        table = torch.zeros(65536, dtype=torch.int64)  # classes nobody asked for are background here
        table[list(ids)] = torch.arange(1, len(ids) + 1)
        table[self.data.ignore] = IGNORED
        truth = table[mask]
        cells = confusion(prediction, truth, len(ids) + 1, ignore=IGNORED)
        counts = torch.stack([cells.diagonal(), cells.sum(dim=1), cells.sum(dim=0)])
        self.counts[name].append(counts.numpy())
        self.confusion[name] += cells.numpy()
        if name == "all" and counts[1, 1:].any():
            self._keep(_image_miou(counts), item, ids, prediction, truth)

    def _keep(self, score: float, item: Item, ids: tuple[int, ...], prediction: Tensor, truth: Tensor) -> None:
        if not (self.best.wants(score) or self.worst.wants(score)):
            return
        maps = (prediction.numpy().astype(np.uint16), truth.numpy().astype(np.uint16))
        example = Example(score, item.id, ids, *maps)
        self.best.add(example)
        self.worst.add(example)

    def evidence(self) -> Evidence:
        """The finished tables."""
        tables = {name: _rows(rows) for name, rows in self.tables.items()}
        groups = {n: Group(ids, _stack(self.counts[n]), self.confusion[n]) for n, ids in self.plan.groups.items()}
        best, worst = self.best.examples(), self.worst.examples()
        return Evidence(self.plan, tables["pairs"], tables["blind"], tables["absent"], groups, best, worst)


class _Answers:
    """One image's answers, at `size` (H, W); where labels do not depend on each other each is computed once."""

    def __init__(self, predictor: Predictor, encoded: Any, size: tuple[int, int]):
        self.predictor, self.encoded, self.size = predictor, encoded, size
        self.known: dict[str, Float[Tensor, "h w"]] = {}

    def claimed(self, label: str, threshold: float) -> Bool[Tensor, "H W"]:
        """Pixels of one label prompted alone."""
        return (upsample(self._logits([label]), self.size)[0].sigmoid_() > threshold).cpu()

    def decided(self, labels: Sequence[str], threshold: float, background: bool) -> Integer[Tensor, "H W"]:
        """Which of the labels prompted together wins where: 0 for none, i for the i-th."""
        return decide_logits(self._logits(labels), self.size, threshold, background)[0].cpu()

    def _logits(self, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        if not self.predictor.independent:
            return self.predictor.logits(self.encoded, labels)
        if new := [label for label in labels if label not in self.known]:
            self.known |= dict(zip(new, self.predictor.logits(self.encoded, new), strict=True))
        return torch.stack([self.known[label] for label in labels])


class _Top:
    """The `size` examples of highest (sign 1) or lowest (sign -1) score."""

    def __init__(self, size: int, sign: int):
        self.size, self.sign, self.added = size, sign, 0
        self.heap: list[tuple[float, int, Example]] = []  # the second number settles ties: first come, first kept

    def wants(self, score: float) -> bool:
        return len(self.heap) < self.size or (self.size > 0 and self.sign * score > self.heap[0][0])

    def add(self, example: Example) -> None:
        if self.wants(example.score):
            self.added += 1
            entry = (self.sign * example.score, -self.added, example)
            heappush(self.heap, entry) if len(self.heap) < self.size else heappushpop(self.heap, entry)

    def examples(self) -> list[Example]:
        return [example for *_, example in sorted(self.heap, reverse=True)]


def _image_miou(counts: Int[Tensor, "3 c"]) -> float:
    """Mean IoU over the classes an image's truth holds."""
    inside, truth, guess = counts[:, 1:].double()
    return float((inside / (truth + guess - inside))[truth > 0].mean())


def _squash(mask: Integer[Tensor, "h w"], side: int) -> Integer[Tensor, "s s"]:
    resized = torch.nn.functional.interpolate(mask[None, None].double(), size=(side, side), mode="nearest")
    return resized[0, 0].long()


def _rows(rows: list[Row]) -> Rows:
    if not rows:
        return Rows(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 0)))
    images, class_ids, values = zip(*rows, strict=True)
    return Rows(np.array(images), np.array(class_ids), np.array(values, float))


def _stack(counts: list[np.ndarray]) -> np.ndarray:
    return np.stack(counts) if counts else np.zeros((0, 3, 1), np.int64)
