"""Compare rules that decide whether and where a label is present, given the logits of mode multicrop's views.

    python benchmarks/presence.py pascal=data/pascal coco=data/coco folder=data/clothing folder=data/coco_stuff
    python benchmarks/presence.py coco=data/coco --split val --every 8

Evaluated on the images that the bundled model's training held out (the sets must be those of the training, in its
order; sets with fewer than five such images are skipped), or on another split. Rows:

    combinations of the whole image's logits and the crops' (mean: as in mode multicrop)
    threshold t: t instead of the model's threshold
    peak below t removed: labels whose largest probability in the image is below t get no pixel
    peak above t, lift a: labels whose largest probability in the image exceeds t have their logits raised by a times
        the difference between 0.9 and that peak, so that weak labels that are present compete with strong ones
    oracle: absent labels are removed, an upper bound for any decision on presence

Columns for each set: multi-class mIoU (masks at 168 x 168) with the 95 % bootstrap interval of its paired difference to
the first row, fraction of present names with an IoU below 1 %, specificity and presence MCC (each name alone). Then,
for each set with background: AUC of a label's largest logit for its presence; and for every present label with an IoU
below 1 % in its image the mean fraction of other pixels that score below one of its own, and the label that scores
highest on most of its pixels.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from held_out import SIDE, held_out_samples

import fusioner
from fusioner.data.masks import resize_mask
from fusioner.data.registry import open_dataset
from fusioner.postprocess import GuidedFilter, upsample
from fusioner.segmenter import Segmenter
from fusioner.sliding_window import Canvas
from fusioner.training.dataset import Sample, open_split

RESAMPLES = 1000
MIN_LOGIT = -9.0  # of labels that exceed 0.05 nowhere
Rule = Callable[[np.ndarray], np.ndarray]
"""Logits (K, S, S) -> adjusted logits."""


@dataclass
class EncodedSample:
    """An image's logits in both views, and its mask."""

    split: int
    logits: np.ndarray  # (2, K, h, w): of the whole image and of the crops
    guide: GuidedFilter
    truth: np.ndarray  # (SIDE, SIDE): label numbers from 1; 0: background, -1: ignored
    present: np.ndarray  # (K,)
    background: bool

    def filtered(self, combine: Rule) -> np.ndarray:
        """Return the combined logits after the guided filter; `MIN_LOGIT` for labels that exceed 0.05 nowhere."""
        logits = combine(self.logits)
        rows = np.arange(len(logits))
        if self.background:
            rows = np.flatnonzero(logits.max(axis=(1, 2)) > logit(0.05))
        full = np.full((len(logits), *self.guide.guide.shape[1:]), MIN_LOGIT, np.float32)
        if len(rows):
            full[rows] = self.guide(logits[rows])
        return full


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def cache_file(cache: Path, sample: Sample) -> Path:
    return cache / f"{sample.split}_{sample.item.id.replace('/', '_')}.npz"


def read(segmenter: Segmenter, sample: Sample, splits: list, cache: Path | None) -> EncodedSample:
    """Encode an image, or read the logits of its views from the cache."""
    split = splits[sample.split]
    rgb, mask = split.data.read(sample.item)
    path = cache_file(cache, sample) if cache else None
    if path and path.is_file():
        with np.load(path) as file:
            views = file["logits"][:, : len(split.classes)].astype(np.float32)
    else:
        encoded = segmenter.encode(rgb, mode="multicrop")
        text = segmenter.embed([split.data.prompts[i] for i in split.classes])
        tokens = np.concatenate([encoded.tokens, *([] if encoded.crop_tokens is None else [encoded.crop_tokens])])
        views = np.concatenate([segmenter.network.predict_logits(grid[None], text, None) for grid in tokens])
        if path:
            np.savez(path, logits=views.astype(np.float16))
    grid = segmenter._crop_grid()
    canvas = Canvas(grid, views.shape[-1])
    for crop, origin in zip(views[1:], grid.origins, strict=True):
        canvas.add(crop, origin)
    crops = canvas.mean()
    logits = np.stack([upsample(views[0], crops.shape[1:]), crops])
    guide = segmenter.wrap_tokens(rgb, [np.zeros((1, 1, 1, 1))], segmenter.resolve(mode="multicrop")).guide
    assert guide is not None
    numbers = np.zeros(256, int)
    numbers[list(split.classes)] = np.arange(1, len(split.classes) + 1)
    numbers[split.data.ignore] = -1
    if split.data.ignore_unlabeled:
        numbers[0] = -1
    truth = numbers[resize_mask(mask, (SIDE, SIDE))]
    return EncodedSample(
        sample.split, logits, guide, truth, np.isin(split.classes, mask), not split.data.ignore_unlabeled
    )


def measure(images: list[EncodedSample], logits: list[np.ndarray], rule: Rule, floor: float, oracle: bool) -> tuple:
    """Return the confusion matrix of each image, and the numbers of prompts by (present, found)."""
    matrices, prompts = [], np.zeros((2, 2))
    for image, image_logits in zip(images, logits, strict=True):
        adjusted = rule(image_logits)
        found = adjusted.max(axis=(1, 2)) > floor
        np.add.at(prompts, (image.present.astype(int), found.astype(int)), 1)
        rows = np.arange(len(adjusted))
        if image.background:
            rows = np.flatnonzero(found & (image.present | (not oracle)))
        elif oracle:
            rows = np.flatnonzero(image.present)
        predicted = np.zeros((SIDE, SIDE), int)
        if len(rows):
            planes = upsample(adjusted[rows], (SIDE, SIDE))
            predicted = rows[planes.argmax(axis=0)] + 1
            if image.background:
                predicted[planes.max(axis=0) <= floor] = 0
        valid, classes = image.truth >= 0, len(adjusted) + 1
        counts = np.bincount(image.truth[valid] * classes + predicted[valid], minlength=classes**2)
        matrices.append(counts.reshape(classes, classes))
    return np.stack(matrices), prompts


def mean_iou(matrix: np.ndarray) -> tuple[float, float]:
    """Return the mIoU in per cent over names with ground truth, and the fraction of these with an IoU below 1 %."""
    truth, predicted, intersection = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    present = truth > 0
    present[0] = False
    iou = intersection[present] / (truth + predicted - intersection)[present]
    return 100 * float(iou.mean()), float((iou < 0.01).mean())


def print_missed(
    name: str, images: list[EncodedSample], logits: list[np.ndarray], prompts: list[str], floor: float
) -> None:
    """Print the AUC of the largest logit for presence, and every missed label."""
    peaks = np.concatenate([planes.max(axis=(1, 2)) for planes in logits])
    present = np.concatenate([image.present for image in images])
    above = np.sign(peaks[present][:, None] - peaks[~present]) / 2 + 0.5
    print(f"\n{name}: AUC of the peak {float(above.mean()):.3f}", flush=True)
    fractions, low = [], 0
    for image, full in zip(images, logits, strict=True):
        planes = upsample(full, (SIDE, SIDE))
        winner = planes.argmax(axis=0)
        for row in image.present.nonzero()[0]:
            mask, found = image.truth == row + 1, (winner == row) & (planes[row] > floor)
            if mask.any() and (mask & found).sum() < 0.01 * (mask | found).sum():
                if full[row].max() <= MIN_LOGIT:
                    low += 1
                    continue
                others = np.sort(planes[row][~mask])
                fractions.append(np.searchsorted(others, planes[row][mask]).mean() / len(others))
                rival = prompts[np.bincount(winner[mask]).argmax()]
                print(f"  {prompts[row]}, {100 * mask.mean():.1f} % of the image: {fractions[-1]:.2f}, rival {rival}")
    print(f"  median of {len(fractions)}: {np.median(fractions):.2f}; {low} others exceed 0.05 nowhere", flush=True)


def lift(factor: float, peak_above: float) -> Rule:
    def rule(logits: np.ndarray) -> np.ndarray:
        peak = logits.max(axis=(1, 2), keepdims=True)
        return logits + factor * np.maximum(0, logit(0.9) - peak) * (peak > logit(peak_above))

    return rule


def drop(peak_below: float) -> Rule:
    return lambda logits: np.where(logits.max(axis=(1, 2), keepdims=True) < logit(peak_below), -20, logits)


COMBINATIONS: dict[str, Rule] = {
    "mean": lambda views: views.mean(axis=0),
    "whole image only": lambda views: views[0],
    "crops only": lambda views: views[1],
    "whole image weighted 2": lambda views: (2 * views[0] + views[1]) / 3,
    "crops weighted 2": lambda views: (views[0] + 2 * views[1]) / 3,
    "weighted by distance from the threshold": lambda views: np.average(views, 0, 0.5 + np.abs(views - logit(0.4))),
    "log of the mean odds": lambda views: np.log(np.exp(views).mean(axis=0)),
    "maximum": lambda views: views.max(axis=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--split", help="evaluate on this split instead of the held-out images")
    parser.add_argument(
        "--every", type=int, nargs="+", default=[1], help="n-th held-out image, one number or one per set"
    )
    parser.add_argument("--limit", type=int, default=1000, help="images per set at most")
    parser.add_argument("--cache", type=Path, help="folder for the logits of the views")
    parser.add_argument("--cached", action="store_true", help="use only images whose logits are in the cache")
    args = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = fusioner.load(device="cpu", runtime="torch")
    splits = [open_split(name, Path(folder)) for name, folder in (entry.split("=", 1) for entry in args.sets)]
    sets: dict[str, list[EncodedSample]] = {}
    if args.split:
        splits = [replace(s, data=open_dataset(s.data.name, s.root, args.split)) for s in splits]
        all_samples = [Sample(number, item, None) for number, split in enumerate(splits) for item in split.data.items]
    else:
        all_samples = list(held_out_samples(segmenter.card, splits))
    for number, split in enumerate(splits):
        every = args.every[min(number, len(args.every) - 1)]
        samples = [sample for sample in all_samples if sample.split == number][::every][: args.limit]
        if args.cached:
            samples = [sample for sample in samples if cache_file(args.cache, sample).is_file()]
        if len(samples) >= 5:
            sets[split.root.name] = [read(segmenter, sample, splits, args.cache) for sample in samples]
    print("| rule | " + " | ".join(f"{name}, {len(images)} images" for name, images in sets.items()) + " |")
    print("|---" * (len(sets) + 1) + "|", flush=True)
    draws = {name: np.random.default_rng(0).integers(0, len(v), (RESAMPLES, len(v))) for name, v in sets.items()}
    first: dict[str, np.ndarray] = {}
    means: dict[str, list[np.ndarray]] = {}

    def row(
        title: str, combine: Rule, rule: Rule = lambda logits: logits, threshold: float = 0.4, oracle: bool = False
    ) -> None:
        cells = []
        for name, images in sets.items():
            logits = means.get(name) if combine is COMBINATIONS["mean"] else None
            logits = logits or [image.filtered(combine) for image in images]
            if title == "mean":
                means[name] = logits
            matrices, prompts = measure(images, logits, rule, logit(threshold), oracle)
            score, missed = mean_iou(matrices.sum(axis=0))
            base = first.setdefault(name, matrices)
            change = [
                mean_iou(matrices[draw].sum(axis=0))[0] - mean_iou(base[draw].sum(axis=0))[0] for draw in draws[name]
            ]
            low, high = np.percentile(change, (2.5, 97.5))
            cell = f"{score:.1f} [{low:+.1f}, {high:+.1f}] / {missed:.2f}"
            if images[0].background and not oracle:
                (tn, fp), (fn, tp) = prompts
                mcc = (tp * tn - fp * fn) / max(1.0, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5)
                cell += f" / {100 * tn / (tn + fp):.1f} / {100 * mcc:.1f}"
            cells.append(cell)
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)

    for title, combine in COMBINATIONS.items():
        row(title, combine)
    mean = COMBINATIONS["mean"]
    row("threshold 0.3", mean, threshold=0.3)
    row("threshold 0.2", mean, threshold=0.2)
    for peak_above, factor in ((0.2, 0.35), (0.2, 0.5), (0.3, 0.35), (0.3, 0.5)):
        row(f"peak above {peak_above}, lift {factor}", mean, lift(factor, peak_above))
    row("peak below 0.5 removed", mean, drop(0.5))
    row("oracle", mean, oracle=True)
    row("oracle, peak above 0.2, lift 0.35", mean, lift(0.35, 0.2), oracle=True)
    for name, images in sets.items():
        if images[0].background:
            split = splits[images[0].split]
            prompts = [split.data.prompts[i] for i in split.classes]
            print_missed(name, images, means[name], prompts, logit(0.4))


if __name__ == "__main__":
    main()
