"""Compare models on the images that their trainings held out: all names of a set at once, at several thresholds.

    python benchmarks/held_out.py run/best.safetensors other/best.safetensors --sets pascal=data/pascal folder=my/data

The sets must be those of the training, in its order; seed and number of held-out images are read from each model's
card. Prints for each threshold the multi-class mIoU of each set in per cent (masks at 168 x 168), their mean, and the
specificity on the first set (absent names without any pixel). The guided filter is applied if the model uses it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from iou import foreground_miou

from fusioner.data.masks import resize_mask
from fusioner.evaluation.evaluator import confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.loading import load
from fusioner.model.checkpoint import ModelCard
from fusioner.postprocess import decide, sigmoid, upsample
from fusioner.training.dataset import DatasetSplit, Sample, build_corpus, open_split

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SIDE = 168


class Arguments(NamedTuple):
    """Command line of a benchmark on held-out images."""

    models: list[Path]
    sets: list[list[str]]  # (name, folder) of each data set
    cache: Path | None

    @property
    def columns(self) -> str:
        """Return the column titles of the sets."""
        return " | ".join(Path(folder).name for _, folder in self.sets)


def parse_args(description: str) -> Arguments:
    """Parse the command line of a benchmark on held-out images."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, help="feature cache")
    args = parser.parse_args()
    torch.set_num_threads(1)
    return Arguments(args.models, [entry.split("=", 1) for entry in args.sets], args.cache)


def held_out_samples(card: ModelCard, splits: Sequence[DatasetSplit]) -> tuple[Sample, ...]:
    """Return the samples that the training of a model held out."""
    settings = card.training["settings"]
    data = settings["data"]
    return build_corpus(splits, data["sampling"], data["val_images"], settings["seed"]).held_out


@torch.inference_mode()
def measure(model: Path, sets: list[list[str]], cache: Path | None) -> list[str]:
    """Return a table row per threshold."""
    segmenter = load(model)
    predictor = SegmenterPredictor(segmenter, cache=cache)
    splits = [open_split(name, Path(folder)) for name, folder in sets]
    scores = [[torch.zeros(2 * (len(split.data.classes),), dtype=torch.int64) for split in splits] for _ in THRESHOLDS]
    rejected: list[list[bool]] = [[] for _ in THRESHOLDS]
    for sample in held_out_samples(segmenter.card, splits):
        split = splits[sample.split]
        rgb, mask = split.data.read(sample.item)
        encoded = predictor.encode(rgb, sample.item.image)
        logits = predictor.logits(encoded, [split.data.prompts[i] for i in split.classes])
        probabilities, ids = sigmoid(upsample(np.asarray(logits), (SIDE, SIDE))), np.array([0, *split.classes])
        small_mask = resize_mask(mask, (SIDE, SIDE)).astype(np.int64)
        truth = torch.from_numpy(np.where(small_mask == split.data.ignore, 255, small_mask))
        absent = [row for row, i in enumerate(split.classes) if not (mask == i).any()]
        for i, threshold in enumerate(THRESHOLDS):
            label_map = decide(probabilities, threshold, background=not split.data.ignore_unlabeled)
            score = scores[i][sample.split]
            score += confusion_matrix(torch.from_numpy(ids[label_map]), truth, len(score))
            if sample.split == 0:
                rejected[i] += (probabilities[absent].max(axis=(1, 2)) <= threshold).tolist()
    rows = []
    for threshold, matrices, empty in zip(THRESHOLDS, scores, rejected, strict=True):
        miou = [foreground_miou(matrix) for matrix in matrices]
        cells = " | ".join(f"{value:.1f}" for value in (*miou, float(np.mean(miou)), 100 * float(np.mean(empty))))
        rows.append(f"| {model.parent.name} | {threshold:g} | {cells} |")
    return rows


def main() -> None:
    args = parse_args(__doc__ or "")
    print(f"| model | threshold | {args.columns} | mean | specificity |")
    print("|" + "---|" * (len(args.sets) + 4))
    for model in args.models:
        print("\n".join(measure(model, args.sets, args.cache)), flush=True)


if __name__ == "__main__":
    main()
