"""Evaluate group words such as "animal", each prompted alone, against all classes of a data set that they cover.

    python benchmarks/groups.py pascal=data/pascal --split val
    python benchmarks/groups.py pascal=data/pascal --models run/best.safetensors other/best.safetensors --every 2
    python benchmarks/groups.py pascal=data/pascal --split val --no-expansion    # the word without its members' names

The groups are the packaged ones of `train --hypernyms`. Prints for each word that covers at least two classes the IoU
in per cent over all images, at native mask size and each model's threshold; then the mean over words, and the
specificity: the fraction of images without any of a word's classes in which the word gets no pixel.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fusioner.data.base import SegmentationData
from fusioner.data.registry import open_dataset
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.labels import LabelHierarchy, read_word_lists
from fusioner.loading import load
from fusioner.postprocess import sigmoid, upsample


def covered_classes(data: SegmentationData) -> dict[str, list[int]]:
    """Map each word to the class ids of a data set that it covers, where these are at least two."""
    ids = {data.prompts[class_id]: class_id for class_id in data.class_ids}
    packaged = read_word_lists("packaged", "hypernyms.json")
    groups = {word: [ids[name] for name in names if name in ids] for word, names in packaged.items()}
    return {word: class_ids for word, class_ids in groups.items() if len(class_ids) > 1}


@torch.inference_mode()
def measure(
    predictor: SegmenterPredictor, data: SegmentationData, groups: dict[str, list[int]], every: int
) -> list[float]:
    """Return the IoU of each group, their mean, and the specificity, in per cent."""
    intersection, union, rejected = np.zeros(len(groups)), np.zeros(len(groups)), []
    for item in data.items[::every]:
        rgb, mask = data.read(item)
        logits = predictor.logits(predictor.encode(rgb, item.image), list(groups))
        probabilities = sigmoid(upsample(np.asarray(logits), mask.shape))
        claimed = (probabilities > predictor.segmenter.card.threshold) & (mask != data.ignore)
        for row, ids in enumerate(groups.values()):
            truth = np.isin(mask, ids)
            intersection[row] += (claimed[row] & truth).sum()
            union[row] += (claimed[row] | truth).sum()
            if not truth.any():
                rejected.append(not claimed[row].any())
    iou = (100 * intersection / np.maximum(union, 1)).tolist()
    return [*iou, float(np.mean(iou)), 100 * float(np.mean(rejected))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="data set to evaluate on")
    parser.add_argument("--split", help="default: every image")
    parser.add_argument("--models", nargs="+", type=Path, default=[None], help="default: the bundled one")
    parser.add_argument("--every", type=int, default=1, help="n-th image")
    parser.add_argument("--no-expansion", action="store_true", help="do not expand words to the names of their members")
    parser.add_argument("--cache", type=Path, help="feature cache")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name, folder = args.set.split("=", 1)
    data = open_dataset(name, Path(folder), args.split)
    groups = covered_classes(data)
    print(f"| model | {' | '.join(groups)} | mean | specificity |\n|" + "---|" * (len(groups) + 3))
    for model in args.models:
        predictor = SegmenterPredictor(load(model), cache=args.cache)
        if args.no_expansion:
            predictor.segmenter.hierarchy = LabelHierarchy(())
        cells = " | ".join(f"{value:.1f}" for value in measure(predictor, data, groups, args.every))
        print(f"| {model.parent.name if model else 'default'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
