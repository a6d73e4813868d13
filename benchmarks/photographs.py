"""Grade each label of some photographs of COCO val: found, in part, missed, or found although absent.

    python benchmarks/photographs.py data/coco
    python benchmarks/photographs.py data/coco --images 30 --mode slide

The photographs are taken at equal steps through val. Each is prompted with the names of its annotated classes and
of three others, drawn at random, in one call. A present name counts as found with an IoU of at least 0.5, in part from
0.1. Prints a table with one row for each photograph, the IoU of its present names and the area of absent ones in per
cent, and the totals.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

import fusioner
from fusioner.data.registry import open_dataset

FOUND, PARTIAL = 50.0, 10.0  # IoU, per cent
ABSENT_NAMES = 3
LINK = "[{0}](https://cocodataset.org/#explore?id={0})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="folder of COCO 2014")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--mode", default="auto")
    args = parser.parse_args()
    segmenter = fusioner.load(device="cpu")
    data = open_dataset("coco", args.root, "val")
    items = [data.items[i] for i in np.linspace(0, len(data.items) - 1, args.images).round().astype(int)]
    rng = np.random.default_rng(0)
    totals: Counter[str] = Counter()
    print("| photograph | found | in part | missed | absent, but found |\n|---|---|---|---|---|")
    for item in items:
        rgb, truth = data.read(item)
        present = [i for i in data.class_ids if (truth == i).any()]
        absent = [i for i in data.class_ids if i not in present]
        drawn = rng.choice(absent, ABSENT_NAMES, replace=False).tolist()
        names = [data.prompts[i] for i in (*present, *drawn)]
        result = segmenter(rgb, names, mode=args.mode)
        cells: dict[str, list[str]] = {"found": [], "in part": [], "missed": [], "absent": []}
        for class_id, name in zip((*present, *drawn), names, strict=True):
            mask = result.mask(name)[truth != data.ignore]
            target = (truth == class_id)[truth != data.ignore]
            if class_id in drawn:
                totals["absent names"] += 1
                area = 100 * mask.mean()
                if area > 0:
                    cells["absent"].append(f"{name} {area:.1f}" if area >= 0.1 else f"{name} < 0.1")
                continue
            iou = 100 * (mask & target).sum() / max(1, (mask | target).sum())
            grade = "found" if iou >= FOUND else "in part" if iou >= PARTIAL else "missed"
            cells[grade].append(f"{name} {iou:.0f}" if mask.any() else name)
        totals.update({grade: len(entries) for grade, entries in cells.items()})
        row = [LINK.format(int(item.id.rpartition("_")[2])), *(", ".join(entries) for entries in cells.values())]
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{len(items)} photographs, mode {segmenter.resolve(mode=args.mode).mode}: {dict(totals)}")


if __name__ == "__main__":
    main()
