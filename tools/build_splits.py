"""Pack the published fold lists into src/fusioner/data/splits, with the same bytes at every run.

    python tools/build_splits.py SPLITS

Reads `pascal5i_hsnet.csv` (split,fold,image,class), `coco20i_hsnet.npz` (per split and fold: image number, 0-based
class) and `fss1000_{trn,val,test}.txt`. The training lists of the four folds are one list filtered by class (checked
here), so each data set is stored once: differences of sorted image numbers, and one bit per class for each.
"""

import csv
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).resolve().parents[1] / "src" / "fusioner" / "data" / "splits"


def pack(pairs: set[tuple[int, int]], classes: int) -> dict[str, np.ndarray]:
    """Pack (image number, class id from 1) pairs as image number differences and class bits."""
    numbers = np.array(sorted({image for image, _ in pairs}), dtype=np.int64)
    row = {int(number): i for i, number in enumerate(numbers)}
    bits = np.zeros((len(numbers), classes), dtype=bool)
    for image, class_id in pairs:
        bits[row[image], class_id - 1] = True
    return {"step": np.diff(numbers, prepend=0).astype(np.uint32), "bits": np.packbits(bits, axis=1)}


def pascal_pairs(path: Path) -> dict[str, set[tuple[int, int]]]:
    """Read PASCAL's pairs; a VOC id (2007_000032) becomes one integer, 2007000032."""
    pairs: dict[str, set[tuple[int, int]]] = {"trn": set(), "val": set()}
    with path.open() as file:
        for row in csv.DictReader(file):
            class_id = int(row["class"])
            assert (class_id - 1) // 5 == int(row["fold"]), row
            pairs[row["split"]].add((int(row["image"].replace("_", "")), class_id))
    return pairs


def coco_pairs(path: Path) -> dict[str, set[tuple[int, int]]]:
    """Read COCO's pairs of all folds; check that a training list is their union without the fold's classes."""
    arrays = np.load(path)
    lists = {}
    for split in ("trn", "val"):
        for fold in range(4):
            images, classes = arrays[f"{split}{fold}_image"], arrays[f"{split}{fold}_class"]
            assert (arrays[f"{split}{fold}_from_val2014"] == (split == "val")).all()
            lists[split, fold] = {(int(i), int(c) + 1) for i, c in zip(images, classes, strict=True)}
    union = {split: set().union(*(lists[split, fold] for fold in range(4))) for split in ("trn", "val")}
    for fold in range(4):
        assert lists["trn", fold] == {pair for pair in union["trn"] if (pair[1] - 1) % 4 != fold}
        assert lists["val", fold] == {pair for pair in union["val"] if (pair[1] - 1) % 4 == fold}
    return union


def main(source: Path) -> None:
    """Write the three packaged files and print their sizes."""
    OUT.mkdir(exist_ok=True)
    for name, pairs, classes in (
        ("pascal", pascal_pairs(source / "pascal5i_hsnet.csv"), 20),
        ("coco", coco_pairs(source / "coco20i_hsnet.npz"), 80),
    ):
        packed = {f"{split}_{key}": value for split in pairs for key, value in pack(pairs[split], classes).items()}
        np.savez_compressed(OUT / f"{name}.npz", allow_pickle=False, **packed)
    lines = [
        f"{split} {name}"
        for split, file in (("train", "trn"), ("val", "val"), ("test", "test"))
        for name in (source / f"fss1000_{file}.txt").read_text().split()
    ]
    (OUT / "fss1000.txt").write_text("\n".join(lines) + "\n")
    for path in sorted(OUT.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
