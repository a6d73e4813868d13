"""The data sets by name. A new one needs its own file and an entry in this one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fusioner.data.base import SegmentationData
from fusioner.data.benchmarks import BENCHMARKS
from fusioner.data.folder import folder
from fusioner.data.fss1000 import fss1000, mosaic4
from fusioner.data.masks import parse_mask_values
from fusioner.errors import FusionerError

TrainableDataset = Literal[
    "pascal", "coco", "folder", "fss1000", "ade150", "ade847", "context59", "context60", "context459", "coco-stuff",
    "coco-object", "cityscapes", "camvid", "pas20", "pas20b", "voc21",
]  # fmt: skip
"""Data sets with training images."""

DatasetName = Literal[TrainableDataset, "coco-to-pascal", "mosaic4"]
"""All data sets."""

TRAINING_SPLITS: dict[str, str] = dict.fromkeys(("pascal", "pas20", "pas20b", "voc21"), "train_aug")
"""Name of the training split where it is not "train"."""


LOADERS: dict[str, Callable[..., SegmentationData]] = {
    **BENCHMARKS,
    "folder": folder,
    "fss1000": fss1000,
    "mosaic4": mosaic4,
}
"""Data set -> its loader, called with (root, split, **options)."""


def open_dataset(
    name: str, root: Path, split: str | None = None, mask_values: str = "", **options: Any
) -> SegmentationData:
    """Open a registered data set with the options of its loader, for example the `seed` of mosaic4.

    `mask_values` are to be read as others, such as "255=1,7=ignore".
    """
    if name not in LOADERS:
        raise FusionerError(f"there is no data set {name!r}; choose one of {', '.join(LOADERS)}")
    data = LOADERS[name](Path(root), split, **options)
    return data.with_mask_values(parse_mask_values(mask_values)) if mask_values else data
