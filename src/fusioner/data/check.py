"""Inspection of a data set: counts, broken files, and a contact sheet."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError
from fusioner.visualization import arrange_grid, overlay, resize_with_map


@dataclass
class DatasetReport:
    """Contents of a data set.

    Attributes:
        images: number of readable images with masks.
        by_class: class id -> [images that contain it, pixels].
        pixels, background, ignored: pixel counts of all readable masks.
        broken: one sentence for each image or mask that cannot be used.
    """

    images: int = 0
    by_class: dict[int, list[int]] = field(default_factory=dict)
    pixels: int = 0
    background: int = 0
    ignored: int = 0
    broken: list[str] = field(default_factory=list)

    def add(self, mask: np.ndarray, ignore: int) -> None:
        """Count one mask of class ids."""
        counts = np.bincount(mask.ravel())
        self.images += 1
        self.pixels += mask.size
        for value in np.flatnonzero(counts).tolist():
            if value == ignore:
                self.ignored += int(counts[value])
            elif value == 0:
                self.background += int(counts[value])
            else:
                totals = self.by_class.setdefault(value, [0, 0])
                totals[0] += 1
                totals[1] += int(counts[value])

    def warnings(self, data: SegmentationData) -> list[str]:
        """Return what is no error but rarely intended, one sentence each."""
        absent = [data.classes[i] for i in data.class_ids if i not in self.by_class]
        found = []
        if self.images and not self.by_class:
            found.append(data.no_class_note())
        elif absent:
            found.append(f"{len(absent)} of {len(data.class_ids)} classes are in no mask: {', '.join(absent[:8])}")
        if self.pixels and self.ignored > self.pixels / 2:
            found.append(f"{100 * self.ignored / self.pixels:.0f} % of all pixels are ignored")
        return found


def check_dataset(data: SegmentationData, track: Callable[[Sequence[Item]], Iterable[Item]] = iter) -> DatasetReport:
    """Read every image and mask; broken ones are listed and not counted."""
    report = DatasetReport()
    for item in track(data.items):
        try:
            report.add(data.read(item)[1], data.ignore)
        except FusionerError as error:
            report.broken.append(str(error))
    report.by_class = dict(sorted(report.by_class.items()))
    return report


def contact_sheet(data: SegmentationData, count: int = 12, columns: int = 4, width: int = 360) -> Image.Image:
    """Draw `count` images, evenly spaced over the data set, in `columns` columns of `width` px.

    Raises:
        FusionerError: a number is below 1, or an image or mask cannot be read.
    """
    if min(count, columns, width) < 1:
        raise FusionerError(f"a contact sheet needs at least one cell, not {count} in {columns} columns")
    chosen = np.linspace(0, len(data.items) - 1, min(count, len(data.items))).round().astype(int)
    return arrange_grid([_cell(data, data.items[i], width) for i in chosen], columns, gap=max(4, width // 40))


def _cell(data: SegmentationData, item: Item, width: int) -> Image.Image:
    rgb, mask = data.read(item)
    # Resized before the legend is drawn, so that all legends have the same font size.
    rgb, mask = resize_with_map(rgb, mask, (width, max(1, round(len(rgb) * width / rgb.shape[1]))))
    classes = [i for i in np.unique(mask).tolist() if i not in (0, data.ignore)]
    table = np.zeros(65536, np.uint16)
    table[classes] = np.arange(1, len(classes) + 1)
    cell = overlay(rgb, table[mask], [data.classes[i] for i in classes])
    return cell if cell.width == width else cell.resize((width, round(cell.height * width / cell.width)))
