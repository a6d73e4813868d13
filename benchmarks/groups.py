"""Words for groups, as "animal": each prompted alone, and held against all classes of a data set that it covers.

    python benchmarks/groups.py pascal=data/pascal --split val
    python benchmarks/groups.py pascal=data/pascal --models run/best.safetensors other/best.safetensors --every 2
    python benchmarks/groups.py pascal=data/pascal --split val --alone    # without the names of the group's members

The groups are the packaged ones of `train --hypernyms`. IoU in per cent over all images together at the masks' own
size, at each model's own threshold, of every word that covers at least two classes of the set; then the mean of the
words, and the share of images without any of its classes where a word claims nothing.
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


def covered(data: SegmentationData) -> dict[str, list[int]]:
    """Word -> the classes of a data set that it stands for, at least two."""
    ids = {data.prompts[class_id]: class_id for class_id in data.class_ids}
    packaged = read_word_lists("packaged", "hypernyms.json")
    groups = {word: [ids[one] for one in names if one in ids] for word, names in packaged.items()}
    return {word: some for word, some in groups.items() if len(some) > 1}


@torch.inference_mode()
def measure(asked: SegmenterPredictor, data: SegmentationData, groups: dict[str, list[int]], every: int) -> list[float]:
    """IoU of each group, their mean, and the share of refusals, per cent."""
    shared, either, refused = np.zeros(len(groups)), np.zeros(len(groups)), []
    for item in data.items[::every]:
        rgb, mask = data.read(item)
        logits = asked.logits(asked.encode(rgb, item.image), list(groups))
        likely = sigmoid(upsample(np.asarray(logits), mask.shape))
        claimed = (likely > asked.segmenter.card.threshold) & (mask != data.ignore)
        for row, ids in enumerate(groups.values()):
            truth = np.isin(mask, ids)
            shared[row] += (claimed[row] & truth).sum()
            either[row] += (claimed[row] | truth).sum()
            if not truth.any():
                refused.append(not claimed[row].any())
    found = (100 * shared / np.maximum(either, 1)).tolist()
    return [*found, float(np.mean(found)), 100 * float(np.mean(refused))]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="a data set as fusioner evaluate has it")
    parser.add_argument("--split", help="default: every image")
    parser.add_argument("--models", nargs="+", type=Path, default=[None], help="default: the one inside the package")
    parser.add_argument("--every", type=int, default=1, help="n-th image")
    parser.add_argument("--alone", action="store_true", help="ask for the word, and not for the group's members")
    parser.add_argument("--cache", type=Path, help="feature cache")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name, folder = given.set.split("=", 1)
    data = open_dataset(name, Path(folder), given.split)
    groups = covered(data)
    print(f"| model | {' | '.join(groups)} | mean | refused |\n|" + "---|" * (len(groups) + 3))
    for model in given.models:
        asked = SegmenterPredictor(load(model), cache=given.cache)
        if given.alone:
            asked.segmenter.hierarchy = LabelHierarchy(())
        cells = " | ".join(f"{value:.1f}" for value in measure(asked, data, groups, given.every))
        print(f"| {model.parent.name if model else 'default'} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
