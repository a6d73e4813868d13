"""Folds of PASCAL-5i, COCO-20i and COCO to PASCAL, and the published lists of (image, class) pairs.

The classes of a fold are "unseen": training never prompts them, evaluation prompts no others. The lists are HSNet's
(Min et al., ICCV 2021), which the official Fusioner evaluation uses: a pair is listed if its class covers about
2 * 32 * 32 pixels of the image after HSNet's resize.
"""

from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np

from fusioner.data.base import Pair
from fusioner.data.classes import COCO_CLASSES, PASCAL_CLASSES, PASCAL_TO_COCO
from fusioner.errors import FusionerError

FOLDS = (0, 1, 2, 3)
FOLD_DATASETS = ("pascal", "coco", "coco-to-pascal")
"""Data sets with folds."""


@lru_cache(maxsize=4)
def published_pairs(name: str, split: str) -> tuple[Pair, ...]:
    """Return HSNet's pairs of all four folds of pascal or coco ("train" or "val"), sorted by image, then class."""
    part = {"train": "trn", "val": "val"}[split]
    with as_file(files("fusioner.data") / "splits" / f"{name}.npz") as path, np.load(path) as packed:
        numbers = np.cumsum(packed[f"{part}_step"], dtype=np.int64)
        bits = np.unpackbits(packed[f"{part}_bits"], axis=1)
    if name == "coco":
        ids = [f"COCO_{split}2014_{number:012d}" for number in numbers]
    else:
        ids = [f"{number // 1_000_000}_{number % 1_000_000:06d}" for number in numbers]
    return tuple((ids[row], int(column) + 1) for row, column in np.argwhere(bits))


def fold_classes(name: str, fold: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the (seen, unseen) class ids of a fold.

    Unseen are, for PASCAL-5i: 5 * fold + 1 ... 5 * fold + 5; for COCO-20i: fold + 1, fold + 5, ...; for COCO to PASCAL:
    the PASCAL classes whose COCO class is unseen in that fold of COCO-20i (6, 4, 6 and 4 of them, as in RePRI, Boudiaf
    et al., CVPR 2021, and HSNet).
    """
    if fold not in FOLDS:
        raise FusionerError(f"fold must be 0, 1, 2 or 3, not {fold}")
    if name == "pascal":
        everything, unseen = range(1, 21), range(5 * fold + 1, 5 * fold + 6)
    elif name == "coco":
        everything, unseen = range(1, 81), range(fold + 1, 81, 4)
    elif name == "coco-to-pascal":
        held_out = {COCO_CLASSES[i] for i in fold_classes("coco", fold)[1]}
        everything = range(1, 21)
        unseen = [i for i in everything if PASCAL_TO_COCO.get(PASCAL_CLASSES[i], PASCAL_CLASSES[i]) in held_out]
    else:
        raise FusionerError(f"data set {name!r} has no folds; {', '.join(FOLD_DATASETS)} have")
    return tuple(i for i in everything if i not in unseen), tuple(unseen)


def val_pairs(name: str, fold: int) -> list[Pair]:
    """Return the published val pairs of a fold's unseen classes, sorted by image, then class."""
    unseen = set(fold_classes(name, fold)[1])
    return [pair for pair in published_pairs(name.removeprefix("coco-to-"), "val") if pair[1] in unseen]
