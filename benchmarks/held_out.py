"""Models side by side on the images that their trainings held out: all names of each set at once, at every level.

    python benchmarks/held_out.py run/best.safetensors other/best.safetensors --sets pascal=data/pascal folder=my/data

The sets are those of the training, in its order; seed and number of held-out images are read from each model's card.
For every level: argmax mIoU of each set in per cent (masks at 168 x 168), their mean, and of the first set the share of
absent names that claim nothing. Edges are moved where the model does so.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fusioner.data.masks import resize_mask
from fusioner.evaluation.evaluator import class_iou, confusion_matrix
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.loading import load
from fusioner.model.checkpoint import ModelCard
from fusioner.postprocess import decide, sigmoid, upsample
from fusioner.training.dataset import DatasetSplit, Sample, build_corpus, open_split

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
SIDE = 168


class Given(NamedTuple):
    """The command line: model files, (name, folder) of each set, and the feature cache."""

    models: list[Path]
    named: list[list[str]]
    cache: Path | None

    @property
    def heads(self) -> str:
        """A column of the table a set."""
        return " | ".join(Path(folder).name for _, folder in self.named)


def read_given(about: str) -> Given:
    """The command line of a benchmark on held-out images."""
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--cache", type=Path, help="feature cache")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return Given(given.models, [one.split("=", 1) for one in given.sets], given.cache)


def set_aside(card: ModelCard, splits: Sequence[DatasetSplit]) -> tuple[Sample, ...]:
    """The images of the splits that the model's training held out."""
    settings = card.training["settings"]
    data = settings["data"]
    return build_corpus(splits, data["sampling"], data["val_images"], settings["seed"]).held_out


@torch.inference_mode()
def measure(model: Path, named: list[list[str]], cache: Path | None) -> list[str]:
    """Rows of the table, one a level."""
    segmenter = load(model)
    asked = SegmenterPredictor(segmenter, cache=cache)
    splits = [open_split(name, Path(folder)) for name, folder in named]
    scores = [[torch.zeros(2 * (len(split.data.classes),), dtype=torch.int64) for split in splits] for _ in LEVELS]
    refused: list[list[bool]] = [[] for _ in LEVELS]
    for sample in set_aside(segmenter.card, splits):
        split = splits[sample.split]
        rgb, mask = split.data.read(sample.item)
        encoded = asked.encode(rgb, sample.item.image)
        likely = upsample(
            np.asarray(asked.logits(encoded, [split.data.prompts[i] for i in split.classes])), (SIDE, SIDE)
        )
        likely, ids = sigmoid(likely), np.array([0, *split.classes])
        small = resize_mask(mask, (SIDE, SIDE)).astype(np.int64)
        truth = torch.from_numpy(np.where(small == split.data.ignore, 255, small))
        absent = [row for row, i in enumerate(split.classes) if not (mask == i).any()]
        for at, level in enumerate(LEVELS):
            chosen = decide(likely, level, background=not split.data.ignore_unlabeled)
            score = scores[at][sample.split]
            score += confusion_matrix(torch.from_numpy(ids[chosen]), truth, len(score))
            if sample.split == 0:
                refused[at] += (likely[absent].max(axis=(1, 2)) <= level).tolist()
    rows = []
    for level, of_sets, none in zip(LEVELS, scores, refused, strict=True):
        found = [100 * float(class_iou(score)[1:].nanmean()) for score in of_sets]
        cells = " | ".join(f"{value:.1f}" for value in (*found, float(np.mean(found)), 100 * float(np.mean(none))))
        rows.append(f"| {model.parent.name} | {level:g} | {cells} |")
    return rows


def main() -> None:
    given = read_given(__doc__ or "")
    print(f"| model | level | {given.heads} | mean | refused |")
    print("|" + "---|" * (len(given.named) + 4))
    for model in given.models:
        print("\n".join(measure(model, given.named, given.cache)), flush=True)


if __name__ == "__main__":
    main()
