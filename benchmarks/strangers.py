"""Names of one data set asked of another's photographs, where they are not: how many of them claim nothing.

    python benchmarks/strangers.py pascal=data/pascal --split val --names folder=data/clothing --without person

Every name is asked for by itself, at each model's own threshold, of the images that show none of the classes given by
`--without`. In per cent, native masks: pairs of image and name where nothing is claimed, the area that is, and the
same for pixels that are labelled as anything; then the names that claim most.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from fusioner.data.base import SegmentationData
from fusioner.data.registry import open_dataset
from fusioner.evaluation.predictor import SegmenterPredictor
from fusioner.loading import load_torch
from fusioner.postprocess import upsample


@torch.inference_mode()
def measure(
    asked: SegmenterPredictor, data: SegmentationData, names: list[str], without: set[int], every: int
) -> tuple[list[float], list[tuple[float, str]]]:
    """Refused, area, area of labelled pixels; and the area of each name."""
    refused, areas, labelled = [], [], []
    for item in data.items[::every]:
        rgb, mask = data.read(item)
        if without & set(np.unique(mask).tolist()):
            continue
        likely = upsample(asked.logits(asked.encode(rgb, item.image), names), mask.shape).sigmoid()
        claimed = (likely > asked.segmenter.card.threshold).numpy()
        refused.append(~claimed.any(axis=(1, 2)))
        areas.append(claimed.mean(axis=(1, 2)))
        something = (mask != data.ignore) & (mask > 0)
        if something.any():
            labelled.append(claimed[:, something].mean(axis=1))
    each = 100 * np.mean(areas, axis=0)
    found = [100 * float(np.mean(one)) for one in (refused, areas, labelled)]
    return found, sorted(zip(each.tolist(), names, strict=True), reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", metavar="NAME=FOLDER", help="whose photographs; a data set as fusioner evaluate has it")
    parser.add_argument("--split", help="default: every image")
    parser.add_argument("--names", required=True, metavar="NAME=FOLDER", help="whose names")
    parser.add_argument("--without", nargs="*", default=[], help="classes of the photographs that may show the names")
    parser.add_argument("--models", nargs="+", type=Path, default=[None], help="default: the one inside the package")
    parser.add_argument("--every", type=int, default=1, help="n-th image")
    parser.add_argument("--cache", type=Path, help="feature cache")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name, folder = given.set.split("=", 1)
    data = open_dataset(name, Path(folder), given.split)
    kind, folder = given.names.split("=", 1)
    lender = open_dataset(kind, Path(folder), None)
    own = {data.prompts[i] for i in data.class_ids}
    names = [lender.prompts[i] for i in lender.class_ids if lender.prompts[i] not in own]
    without = {i for i in data.class_ids if data.prompts[i] in given.without}
    print("| model | refused | area | of labelled pixels | most |\n" + "|---" * 5 + "|")
    for model in given.models:
        asked = SegmenterPredictor(load_torch(model), cache=given.cache)
        found, each = measure(asked, data, names, without, given.every)
        most = ", ".join(f"{one} {area:.1f}" for area, one in each[:6])
        cells = " | ".join(f"{value:.1f}" for value in found)
        print(f"| {model.parent.name if model else 'default'} | {cells} | {most} |", flush=True)


if __name__ == "__main__":
    main()
