"""Mode multicrop: labels that need not be looked for in the crops, as the whole image makes them likely nowhere.

    python benchmarks/crop_names.py folder=data/clothing:train coco=data/coco:train --every 50 18

Prints per bound on a label's highest logit in the whole image: the share of all names of the set that reach it, and the
share of pixels whose label changes at several thresholds if the others keep the logits of the whole image.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import fusioner
import fusioner.segmenter as implementation
from fusioner.data.registry import open_dataset
from fusioner.postprocess import decide_logits

BOUNDS = (-6.0, -5.0, -4.0, -3.0, -2.0)
THRESHOLDS = (0.05, 0.1, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER:SPLIT")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="n-th image, one number or one per set")
    given = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    print("| set | images | names | bound | names that reach it | " + " | ".join(map(str, THRESHOLDS)) + " |")
    print("|---" * (5 + len(THRESHOLDS)) + "|")
    for number, entry in enumerate(given.sets):
        name, _, place = entry.partition("=")
        folder, _, split = place.partition(":")
        data = open_dataset(name, Path(folder), split or None)
        labels = [data.prompts[i] for i in data.class_ids]
        items = data.items[:: given.every[min(number, len(given.every) - 1)]]
        reached, changed = ({bound: list[list[float]]() for bound in BOUNDS} for _ in range(2))
        for item in items:
            image = data.read(item)[0]
            encoded = segmenter.encode(image, mode="multicrop")
            peaks = segmenter.low_res_logits(segmenter.encode(image, mode="whole"), labels).max(axis=(1, 2))
            maps = {}
            for bound in (-np.inf, *BOUNDS):
                implementation.MIN_CROP_LOGIT = bound
                logits = segmenter.low_res_logits(replace(encoded, logits_cache={}), labels)
                maps[bound] = [decide_logits(logits, encoded.size, threshold)[0] for threshold in THRESHOLDS]
            for bound in BOUNDS:
                reached[bound].append([float((peaks >= bound).mean())])
                pairs = zip(maps[bound], maps[-np.inf], strict=True)
                changed[bound].append([float((now != before).mean()) for now, before in pairs])
        for bound in BOUNDS:
            shares = [*np.mean(reached[bound], axis=0), *np.mean(changed[bound], axis=0)]
            cells = " | ".join([f"{shares[0]:.0%}", *(f"{share:.3%}" for share in shares[1:])])
            print(f"| {name} | {len(items)} | {len(labels)} | {bound} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
