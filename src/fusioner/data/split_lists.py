"""The (image, class) pairs of PASCAL-5i and COCO-20i that HSNet published, packaged in `data/splits`."""

from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np

from fusioner.data.base import Pair


@lru_cache(maxsize=4)
def published_pairs(name: str, split: str) -> tuple[Pair, ...]:
    """Return HSNet's pairs of all four folds ("train" or "val"), sorted by image, then class."""
    part = {"train": "trn", "val": "val"}[split]
    with as_file(files("fusioner.data") / "splits" / f"{name}.npz") as path, np.load(path) as packed:
        numbers = np.cumsum(packed[f"{part}_step"], dtype=np.int64)
        bits = np.unpackbits(packed[f"{part}_bits"], axis=1)
    ids = [_image_id(name, split, int(number)) for number in numbers]
    return tuple((ids[row], int(column) + 1) for row, column in np.argwhere(bits))


def _image_id(name: str, split: str, number: int) -> str:
    if name == "coco":
        return f"COCO_{split}2014_{number:012d}"
    return f"{number // 1_000_000}_{number % 1_000_000:06d}"
