"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusioner.data.base import SegmentationData
from fusioner.data.benchmarks import BENCHMARKS
from fusioner.data.coco import coco20i
from fusioner.data.folder import folder
from fusioner.data.fss1000 import fss1000
from fusioner.data.mosaic4 import mosaic4
from fusioner.data.pascal import coco_to_pascal, pascal
from fusioner.errors import FusionerError

DATASETS: dict[str, Callable[..., SegmentationData]] = {
    "pascal": pascal,
    "coco": coco20i,
    "coco-to-pascal": coco_to_pascal,
    "folder": folder,
    "fss1000": fss1000,
    "mosaic4": mosaic4,
    **BENCHMARKS,
}


def open_dataset(name: str, root: Path, split: str | None = None, **options: Any) -> SegmentationData:
    """Open a data set of the catalog; `options` are the set's own (the `seed` of mosaic4).

    Raises:
        FusionerError: an unknown name, or whatever the set's own builder finds wrong.
    """
    if name not in DATASETS:
        raise FusionerError(f"there is no data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name](Path(root), split, **options)
