"""Compare refinements of logits: none, the guided filter, PAMR (arXiv 2005.08104), label propagation.

    python benchmarks/edges.py run/best.safetensors --sets pascal=data/pascal folder=my/data
    python benchmarks/edges.py fold0/best.safetensors fold1/best.safetensors --sets pascal=data/pascal

On training images only: those that a training held out, with all names of a set; for a fold's model, 80 images that
show its unseen classes (background in training), with these names. Multi-class mIoU of each set without background, at
native mask size and the model's threshold, in per cent. "Single" is the mean IoU of the classes in an image, each
prompted alone; "specificity" the fraction of absent names without any pixel.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from held_out import held_out_samples, parse_args
from iou import foreground_miou
from torch import Tensor

from fusioner.data.folds import fold_classes
from fusioner.evaluation.evaluator import confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.image import resize_square
from fusioner.loading import load
from fusioner.options import InferenceOptions
from fusioner.postprocess import GUIDE_SIZE, GuidedFilter, decide, sigmoid, upsample
from fusioner.training.dataset import open_split

SIDE = GUIDE_SIZE
MAX_IMAGES = 80  # of a fold's unseen classes
STEPS = 5  # of PAMR and of label propagation
DILATIONS = (1, 2, 4)  # of PAMR
SHARPNESS = 15.0  # of the weights of label propagation


class Sample(NamedTuple):
    """An image with its prompts and their logits."""

    split: int  # index of its data set
    rgb: np.ndarray
    mask: np.ndarray  # 255: ignored
    ids: tuple[int, ...]  # prompted classes
    logits: Tensor  # (K, h, w)
    tokens: np.ndarray  # (D, P), visual tokens of the square grid
    background: bool


Refinement = Callable[[Tensor, Sample, float], Tensor]
"""Logits (K, h, w), their sample and the model's threshold -> refined logits."""


def guided_filter(radius: int, epsilon: float, side: int = SIDE) -> Refinement:
    """Return the guided filter with the given parameters."""
    return lambda logits, sample, _: torch.from_numpy(
        GuidedFilter(resize_square(sample.rgb, side).numpy(), radius, epsilon)(logits.numpy())
    )


def propagation(gain: float, penalty: float) -> Refinement:
    """Return label propagation: mean-field inference of a CRF over patches, each label by itself.

    A patch's logit grows by up to `gain` where most similar patches have the label and falls by up to `penalty` where
    few have (docs/lab-notes/propagation.md).
    """

    def refine(logits: Tensor, sample: Sample, threshold: float) -> Tensor:
        tokens = F.normalize(torch.from_numpy(sample.tokens).float(), dim=0)
        cosine = tokens.T @ tokens
        weights = (SHARPNESS * (cosine - cosine.mean())).expm1().clamp(min=0).fill_diagonal_(0)
        weights = (weights / weights.sum(dim=1, keepdim=True).clamp_min(1e-12)).T
        side = math.isqrt(len(weights))
        unary = F.interpolate(logits[None], size=(side, side), mode="area")[0].flatten(1)
        unary = unary - math.log(threshold / (1 - threshold))
        evidence = torch.zeros_like(unary)
        for _ in range(STEPS):
            majority = ((unary + evidence) / 2).tanh() @ weights  # 1: all similar patches have the label, -1: none
            evidence = gain * majority.clamp(min=0) + penalty * majority.clamp(max=0)
        return logits + torch.from_numpy(
            upsample(evidence.view(-1, side, side).numpy(), (logits.shape[1], logits.shape[2]))
        )

    return refine


def chain(first: Refinement, second: Refinement) -> Refinement:
    """Return two refinements applied one after the other."""
    return lambda logits, sample, threshold: second(first(logits, sample, threshold), sample, threshold)


def pamr(logits: Tensor, sample: Sample, threshold: float) -> Tensor:
    """Average probabilities iteratively over neighbours of similar colour."""
    guide = resize_square(sample.rgb, SIDE)[None]
    probabilities = torch.from_numpy(sigmoid(upsample(logits.numpy(), (SIDE, SIDE))))[None]

    def neighbours(x: Tensor) -> Tensor:  # (1, C, S, S) -> (1, N, C, S, S)
        shifted = []
        for d in DILATIONS:
            padded = F.pad(x, (d, d, d, d), mode="replicate")
            offsets = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
            shifted += [padded[..., y * d : y * d + SIDE, x * d : x * d + SIDE] for y, x in offsets]
        return torch.stack(shifted, dim=1)

    colours = neighbours(guide)
    std = torch.cat([colours, guide[:, None]], dim=1).std(dim=1, keepdim=True)
    weights = -((colours - guide[:, None]).abs() / (0.1 * std + 1e-8)).mean(dim=2, keepdim=True)
    weights = weights.softmax(dim=1)
    for _ in range(STEPS):
        probabilities = (neighbours(probabilities) * weights).sum(dim=1)
    return probabilities[0].clamp(1e-5, 1 - 1e-5).logit()


REFINEMENTS: dict[str, Refinement] = {
    "none": lambda logits, sample, threshold: logits,
    "guided, radius 2": guided_filter(2, 1e-4),
    "guided, radius 4 (default)": guided_filter(4, 1e-4),
    "guided, radius 8": guided_filter(8, 1e-4),
    "guided, radius 4, guide of 168": guided_filter(4, 1e-4, 168),
    "PAMR": pamr,
    "label propagation, guided": chain(propagation(3.0, 1.0), guided_filter(4, 1e-4)),
    "label propagation without penalty, guided": chain(propagation(3.0, 0.0), guided_filter(4, 1e-4)),
}


def predict(model: Path, sets: list[list[str]], cache: Path | None) -> tuple[list[Sample], float]:
    """Return the samples with the model's logits, and the model's threshold."""
    segmenter = load(model)
    segmenter.options = InferenceOptions(guided_filter=False)
    fold = segmenter.card.training["fold"]
    predictor = SegmenterPredictor(segmenter, cache=cache)
    splits = [open_split(name, Path(folder)) for name, folder in sets]
    if fold is None:
        selected = [(s.split, s.item, splits[s.split].classes) for s in held_out_samples(segmenter.card, splits)]
    else:
        data, unseen = splits[0].data, fold_classes(sets[0][0], fold)[1]
        order = (data.items[i] for i in np.random.default_rng(0).permutation(len(data.items)))
        showing = (item for item in order if np.isin(data.read_mask(item), unseen).any())
        selected = [(0, item, unseen) for item, _ in zip(showing, range(MAX_IMAGES), strict=False)]
    samples = []
    for split, item, ids in selected:
        data = splits[split].data
        rgb, mask = data.read(item)
        encoded = predictor.encode(rgb, item.image)
        logits = predictor.logits(encoded, [data.prompts[i] for i in ids])
        tokens = encoded[0].encoded.tokens[0, : segmenter.card.config.visual_dim]
        mask = np.where(mask == data.ignore, 255, np.where(np.isin(mask, ids), mask, 0))
        samples.append(
            Sample(split, rgb, mask, tuple(ids), logits, tokens.reshape(len(tokens), -1), not data.ignore_unlabeled)
        )
    return samples, segmenter.card.threshold


def table_rows(model: Path, sets: list[list[str]], cache: Path | None) -> Iterator[str]:
    """Yield a table row per refinement."""
    samples, threshold = predict(model, sets, cache)
    for name, refine in REFINEMENTS.items():
        scores = [torch.zeros(256, 256, dtype=torch.int64) for _ in sets]
        areas: dict[tuple[int, int], np.ndarray] = {}  # intersection and union, px
        rejected, seconds = [], 0.0
        for sample in samples:
            start = time.perf_counter()
            logits = refine(sample.logits, sample, threshold)
            seconds += time.perf_counter() - start
            probabilities = sigmoid(upsample(np.asarray(logits), sample.mask.shape))
            numbers = decide(probabilities, threshold, background=sample.background)
            label_map = torch.from_numpy(np.array([0, *sample.ids])[numbers])
            truth = torch.from_numpy(sample.mask).long()
            scored = truth if sample.background else truth.masked_fill(truth == 0, 255)
            scores[sample.split] += confusion_matrix(label_map, scored, 256)
            valid = truth != 255
            for row, i in enumerate(sample.ids):
                claimed, present = torch.from_numpy(probabilities[row] > threshold) & valid, truth == i
                if present.any():
                    counts = np.array([int((claimed & present).sum()), int((claimed | present).sum())])
                    areas[sample.split, i] = areas.get((sample.split, i), 0) + counts
                elif sample.background:
                    rejected.append(not bool((probabilities[row] > threshold).any()))
        cells = [foreground_miou(score) for score in scores]
        single = np.mean([intersection / union for intersection, union in areas.values()])
        cells += [100 * float(single), 100 * float(np.mean(rejected))]
        cells.append(1000 * seconds / len(samples))
        yield f"| {model.parent.name} | {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |"


def main() -> None:
    args = parse_args(__doc__ or "")
    print(f"| model | refinement | {args.columns} | single | specificity | ms per image |")
    print("|" + "---|" * (len(args.sets) + 5))
    with torch.inference_mode():
        for model in args.models:
            for row in table_rows(model, args.sets, args.cache):
                print(row, flush=True)


if __name__ == "__main__":
    main()
