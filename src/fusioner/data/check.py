"""Reading a whole data set once to say what is in it and what is broken."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError


@dataclass
class DatasetReport:
    """What a data set holds.

    Attributes:
        images: readable image and mask pairs.
        by_class: class id -> [images it is in, pixels].
        pixels, background, ignored: pixel counts of all readable masks.
        broken: one sentence for each image or mask that cannot be used.
    """

    images: int = 0
    by_class: dict[int, list[int]] = field(default_factory=dict)
    pixels: int = 0
    background: int = 0
    ignored: int = 0
    broken: list[str] = field(default_factory=list)

    def warnings(self, data: SegmentationData) -> list[str]:
        """Things that are no errors but seldom meant."""
        never = [data.classes[i] for i in data.class_ids if i not in self.by_class]
        found = []
        if self.images and not self.by_class:
            found.append(f"no mask holds any class: pixels of class i must have the value i, {data.ignore} is ignored")
        elif never:
            found.append(f"{len(never)} of {len(data.class_ids)} classes are in no mask: {', '.join(never[:8])}")
        if self.pixels and self.ignored > self.pixels / 2:
            found.append(f"{100 * self.ignored / self.pixels:.0f} % of all pixels are ignored")
        return found


def check_dataset(data: SegmentationData, track: Callable[[Sequence[Item]], Iterable[Item]] = iter) -> DatasetReport:
    """Read every image and mask; broken ones are written down and left out of the counts."""
    checked = DatasetReport(by_class={})
    for item in track(data.items):
        try:
            _, mask = data.read(item)
        except FusionerError as error:
            checked.broken.append(str(error))
            continue
        _count(checked, mask, data)
    checked.by_class = dict(sorted(checked.by_class.items()))
    return checked


def _count(checked: DatasetReport, mask: np.ndarray, data: SegmentationData) -> None:
    counts = np.bincount(mask.ravel())
    checked.images += 1
    checked.pixels += mask.size
    for value in np.flatnonzero(counts).tolist():
        if value == data.ignore:
            checked.ignored += int(counts[value])
        elif value == 0:
            checked.background += int(counts[value])
        else:
            totals = checked.by_class.setdefault(value, [0, 0])
            totals[0] += 1
            totals[1] += int(counts[value])
