"""Rules that decide whether and where a label is, from the logits of the looks of mode multicrop.

    python benchmarks/presence.py pascal=data/pascal coco=data/coco folder=data/clothing folder=data/coco_stuff
    python benchmarks/presence.py coco=data/coco --split val --every 8

Measured on the images that the bundled model's training held out (the sets are those of the training, in its order, and
one with fewer than five such images is skipped), or on another split. Rows:

    combinations of the whole image's logits and the crops' (mean: what mode multicrop does)
    level t: a label's threshold is t instead of the model's
    peak below t removed: a label whose largest probability in the image is below t gets no pixel
    peak above t, lift a: a label whose largest probability in the image exceeds t has its logits raised by a times what
        that peak lacks to 0.9, so that a weak label that is present competes with a strong one
    oracle: absent labels are removed, which bounds what any decision on presence can gain

Columns for each set: mIoU (argmax; masks at 168 x 168) with the 95 % bootstrap interval of its paired difference to the
first row, share of present names with an IoU below 1 %, specificity and presence MCC (each name alone). Then, for each
set with background: AUC of a label's largest logit for its presence; and of every present label with an IoU below 1 %
in its image the share of other pixels that score below an average one of its own, and the label that most of its pixels
score highest for.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from held_out import SIDE, set_aside

import fusioner
from fusioner.data.masks import resize_mask
from fusioner.data.registry import open_dataset
from fusioner.postprocess import GuidedFilter, upsample
from fusioner.segmenter import Segmenter
from fusioner.sliding_window import Canvas
from fusioner.training.dataset import Sample, open_split

RESAMPLES, HOPELESS = 1000, -9.0
Rule = Callable[[np.ndarray], np.ndarray]
"""Logits of some labels (K, S, S) -> adjusted logits."""


@dataclass
class Looks:
    """Logits (2, K, h, w) of the whole image and of its crops, and the mask as label numbers (-1: not evaluated)."""

    split: int
    logits: np.ndarray
    guide: GuidedFilter
    truth: np.ndarray
    present: np.ndarray
    background: bool

    def filtered(self, combine: Rule) -> np.ndarray:
        """Return the combined logits after the guided filter; `HOPELESS` for labels that exceed 0.05 nowhere."""
        logits = combine(self.logits)
        rows = np.arange(len(logits))
        if self.background:
            rows = np.flatnonzero(logits.max(axis=(1, 2)) > logit(0.05))
        full = np.full((len(logits), *self.guide.guide.shape[1:]), HOPELESS, np.float32)
        if len(rows):
            full[rows] = self.guide(logits[rows])
        return full


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def cache_file(cache: Path, sample: Sample) -> Path:
    return cache / f"{sample.split}_{sample.item.id.replace('/', '_')}.npz"


def read(segmenter: Segmenter, sample: Sample, splits: list, cache: Path | None) -> Looks:
    """Encode an image, or read the logits of its looks from the cache."""
    split = splits[sample.split]
    rgb, mask = split.data.read(sample.item)
    path = cache_file(cache, sample) if cache else None
    if path and path.is_file():
        with np.load(path) as file:
            looks = file["logits"][:, : len(split.classes)].astype(np.float32)
    else:
        encoded = segmenter.encode(rgb, mode="multicrop")
        text = segmenter.embed([split.data.prompts[i] for i in split.classes])
        tokens = np.concatenate([encoded.tokens, *([] if encoded.crop_tokens is None else [encoded.crop_tokens])])
        looks = np.concatenate([segmenter.network.predict_logits(one[None], text, None) for one in tokens])
        if path:
            np.savez(path, logits=looks.astype(np.float16))
    grid = segmenter._crop_grid()
    canvas = Canvas(grid, looks.shape[-1])
    for crop, origin in zip(looks[1:], grid.origins, strict=True):
        canvas.add(crop, origin)
    crops = canvas.mean()
    logits = np.stack([upsample(looks[0], crops.shape[1:]), crops])
    guide = segmenter.wrap_tokens(rgb, [np.zeros((1, 1, 1, 1))], segmenter.resolve(mode="multicrop")).guide
    assert guide is not None
    number = np.zeros(256, int)
    number[list(split.classes)] = np.arange(1, len(split.classes) + 1)
    number[split.data.ignore] = -1
    if split.data.ignore_unlabeled:
        number[0] = -1
    truth = number[resize_mask(mask, (SIDE, SIDE))]
    return Looks(sample.split, logits, guide, truth, np.isin(split.classes, mask), not split.data.ignore_unlabeled)


def measure(images: list[Looks], logits: list[np.ndarray], rule: Rule, floor: float, oracle: bool) -> tuple:
    """Return the confusion matrix of each image, and the numbers of prompts by (present, found)."""
    matrices, prompts = [], np.zeros((2, 2))
    for image, before in zip(images, logits, strict=True):
        after = rule(before)
        found = after.max(axis=(1, 2)) > floor
        np.add.at(prompts, (image.present.astype(int), found.astype(int)), 1)
        rows = np.arange(len(after))
        if image.background:
            rows = np.flatnonzero(found & (image.present | (not oracle)))
        elif oracle:
            rows = np.flatnonzero(image.present)
        predicted = np.zeros((SIDE, SIDE), int)
        if len(rows):
            planes = upsample(after[rows], (SIDE, SIDE))
            predicted = rows[planes.argmax(axis=0)] + 1
            if image.background:
                predicted[planes.max(axis=0) <= floor] = 0
        valid, classes = image.truth >= 0, len(after) + 1
        cells = np.bincount(image.truth[valid] * classes + predicted[valid], minlength=classes**2)
        matrices.append(cells.reshape(classes, classes))
    return np.stack(matrices), prompts


def mean_iou(matrix: np.ndarray) -> tuple[float, float]:
    """Return the mIoU in per cent over names with ground truth, and the share of them below 1 %."""
    truth, found, both = matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix)
    present = truth > 0
    present[0] = False
    iou = both[present] / (truth + found - both)[present]
    return 100 * float(iou.mean()), float((iou < 0.01).mean())


def print_missed(name: str, images: list[Looks], logits: list[np.ndarray], prompts: list[str], floor: float) -> None:
    """Print the AUC of the largest logit for presence, and every missed label."""
    peaks = np.concatenate([planes.max(axis=(1, 2)) for planes in logits])
    present = np.concatenate([image.present for image in images])
    above = np.sign(peaks[present][:, None] - peaks[~present]) / 2 + 0.5
    print(f"\n{name}: AUC of the peak {float(above.mean()):.3f}", flush=True)
    shares, nowhere = [], 0
    for image, full in zip(images, logits, strict=True):
        planes = upsample(full, (SIDE, SIDE))
        winner = planes.argmax(axis=0)
        for row in image.present.nonzero()[0]:
            mask, found = image.truth == row + 1, (winner == row) & (planes[row] > floor)
            if mask.any() and (mask & found).sum() < 0.01 * (mask | found).sum():
                if full[row].max() <= HOPELESS:
                    nowhere += 1
                    continue
                others = np.sort(planes[row][~mask])
                shares.append(np.searchsorted(others, planes[row][mask]).mean() / len(others))
                rival = prompts[np.bincount(winner[mask]).argmax()]
                print(f"  {prompts[row]}, {100 * mask.mean():.1f} % of the image: {shares[-1]:.2f}, rival {rival}")
    print(f"  median of {len(shares)}: {np.median(shares):.2f}; {nowhere} others exceed 0.05 nowhere", flush=True)


def lift(share: float, peak_above: float) -> Rule:
    def rule(logits: np.ndarray) -> np.ndarray:
        peak = logits.max(axis=(1, 2), keepdims=True)
        return logits + share * np.maximum(0, logit(0.9) - peak) * (peak > logit(peak_above))

    return rule


def drop(peak_below: float) -> Rule:
    return lambda logits: np.where(logits.max(axis=(1, 2), keepdims=True) < logit(peak_below), -20, logits)


COMBINATIONS: dict[str, Rule] = {
    "mean": lambda looks: looks.mean(axis=0),
    "whole image alone": lambda looks: looks[0],
    "crops alone": lambda looks: looks[1],
    "whole image weighs 2": lambda looks: (2 * looks[0] + looks[1]) / 3,
    "crops weigh 2": lambda looks: (looks[0] + 2 * looks[1]) / 3,
    "weighed by distance from the threshold": lambda looks: np.average(looks, 0, 0.5 + np.abs(looks - logit(0.4))),
    "log of the mean odds": lambda looks: np.log(np.exp(looks).mean(axis=0)),
    "maximum": lambda looks: looks.max(axis=0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--split", help="measure this split instead of the held-out images")
    parser.add_argument(
        "--every", type=int, nargs="+", default=[1], help="n-th held-out image, one number or one per set"
    )
    parser.add_argument("--limit", type=int, default=1000, help="images per set at most")
    parser.add_argument("--cache", type=Path, help="folder for the logits of the looks")
    parser.add_argument("--cached", action="store_true", help="measure only images in the cache: an interrupted run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = fusioner.load(device="cpu", runtime="torch")
    splits = [open_split(name, Path(folder)) for name, folder in (one.split("=", 1) for one in given.sets)]
    sets: dict[str, list[Looks]] = {}
    if given.split:
        splits = [replace(s, data=open_dataset(s.data.name, s.root, given.split)) for s in splits]
        wanted = [Sample(number, item, None) for number, split in enumerate(splits) for item in split.data.items]
    else:
        wanted = list(set_aside(segmenter.card, splits))
    for number, split in enumerate(splits):
        every = given.every[min(number, len(given.every) - 1)]
        samples = [sample for sample in wanted if sample.split == number][::every][: given.limit]
        if given.cached:
            samples = [sample for sample in samples if cache_file(given.cache, sample).is_file()]
        if len(samples) >= 5:
            sets[split.root.name] = [read(segmenter, sample, splits, given.cache) for sample in samples]
    print("| rule | " + " | ".join(f"{name}, {len(images)} images" for name, images in sets.items()) + " |")
    print("|---" * (len(sets) + 1) + "|", flush=True)
    draws = {name: np.random.default_rng(0).integers(0, len(v), (RESAMPLES, len(v))) for name, v in sets.items()}
    first: dict[str, np.ndarray] = {}
    means: dict[str, list[np.ndarray]] = {}

    def row(
        title: str, combine: Rule, rule: Rule = lambda logits: logits, level: float = 0.4, oracle: bool = False
    ) -> None:
        cells = []
        for name, images in sets.items():
            logits = means.get(name) if combine is COMBINATIONS["mean"] else None
            logits = logits or [image.filtered(combine) for image in images]
            if title == "mean":
                means[name] = logits
            matrices, prompts = measure(images, logits, rule, logit(level), oracle)
            score, never = mean_iou(matrices.sum(axis=0))
            base = first.setdefault(name, matrices)
            change = [
                mean_iou(matrices[draw].sum(axis=0))[0] - mean_iou(base[draw].sum(axis=0))[0] for draw in draws[name]
            ]
            low, high = np.percentile(change, (2.5, 97.5))
            cell = f"{score:.1f} [{low:+.1f}, {high:+.1f}] / {never:.2f}"
            if images[0].background and not oracle:
                (tn, fp), (fn, tp) = prompts
                mcc = (tp * tn - fp * fn) / max(1.0, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5)
                cell += f" / {100 * tn / (tn + fp):.1f} / {100 * mcc:.1f}"
            cells.append(cell)
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)

    for title, combine in COMBINATIONS.items():
        row(title, combine)
    mean = COMBINATIONS["mean"]
    row("level 0.3", mean, level=0.3)
    row("level 0.2", mean, level=0.2)
    for peak_above, share in ((0.2, 0.35), (0.2, 0.5), (0.3, 0.35), (0.3, 0.5)):
        row(f"peak above {peak_above}, lift {share}", mean, lift(share, peak_above))
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
