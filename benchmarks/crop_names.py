"""Measure which labels mode multicrop can leave out of the crops because their logits in the whole image are low.

    python benchmarks/crop_names.py folder=data/clothing:train coco=data/coco:train --every 50 18

Prints per bound on a label's highest logit in the whole image: the fraction of the set's names that reach it, and the
fraction of pixels whose label changes, at several thresholds, if the other names keep the logits of the whole image.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import fusioner
import fusioner.segmenter as segmenter_module
from fusioner.data.registry import open_dataset
from fusioner.postprocess import decide_logits

BOUNDS = (-6.0, -5.0, -4.0, -3.0, -2.0)
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="n-th image, one number or one per set")
    args = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    print("| set | images | names | bound | names that reach it | " + " | ".join(map(str, THRESHOLDS)) + " |")
    print("|---" * (5 + len(THRESHOLDS)) + "|")
    for number, entry in enumerate(args.sets):
        name, _, path = entry.partition("=")
        folder, _, split = path.partition(":")
        data = open_dataset(name, Path(folder), split or None)
        labels = [data.prompts[i] for i in data.class_ids]
        items = data.items[:: args.every[min(number, len(args.every) - 1)]]
        reached, changed = ({bound: list[list[float]]() for bound in BOUNDS} for _ in range(2))
        for item in items:
            image = data.read(item)[0]
            encoded = segmenter.encode(image, mode="multicrop")
            peaks = segmenter.low_res_logits(segmenter.encode(image, mode="whole"), labels).max(axis=(1, 2))
            label_maps = {}
            for bound in (-np.inf, *BOUNDS):
                segmenter_module.MIN_CROP_LOGIT = bound
                logits = segmenter.low_res_logits(replace(encoded, logits_cache={}), labels)
                label_maps[bound] = [decide_logits(logits, encoded.size, threshold)[0] for threshold in THRESHOLDS]
            for bound in BOUNDS:
                reached[bound].append([float((peaks >= bound).mean())])
                pairs = zip(label_maps[bound], label_maps[-np.inf], strict=True)
                changed[bound].append([float((bounded != full).mean()) for bounded, full in pairs])
        for bound in BOUNDS:
            fractions = [*np.mean(reached[bound], axis=0), *np.mean(changed[bound], axis=0)]
            cells = " | ".join([f"{fractions[0]:.0%}", *(f"{fraction:.3%}" for fraction in fractions[1:])])
            print(f"| {name} | {len(items)} | {len(labels)} | {bound} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
