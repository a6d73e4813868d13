"""Inspection of a data set: counts, broken files, and a contact sheet."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError
from fusioner.image import is_turned
from fusioner.progress import Track, no_progress
from fusioner.visualization import arrange_grid, overlay, resize_with_maps

WIDTH = 360  # px of an image in the contact sheet


@dataclass
class DatasetReport:
    """Contents of a data set; class id 0 is background, the ignored value is counted as well."""

    readable: int = 0  # images that can be read, with masks
    images: Counter[int] = field(default_factory=Counter)  # class id -> number of images that contain it
    pixels: Counter[int] = field(default_factory=Counter)  # class id -> number of pixels
    turned: int = 0  # images that their EXIF orientation turns
    broken: list[str] = field(default_factory=list)  # one sentence for each image or mask that cannot be used

    def warnings(self, data: SegmentationData) -> list[str]:
        """Return warnings of unusual contents, one sentence each."""
        absent = [data.classes[i] for i in data.class_ids if not self.images[i]]
        ignored, total = self.pixels[data.ignore], self.pixels.total()
        found = []
        if self.readable and len(absent) == len(data.class_ids):
            found.append(data.no_class_note())
        elif absent:
            found.append(f"{len(absent)} of {len(data.class_ids)} classes are in no mask: {', '.join(absent[:8])}")
        if self.turned:
            found.append(f"{self.turned} images are turned by their EXIF orientation; so must their masks be")
        if ignored > total / 2:
            found.append(f"{100 * ignored / total:.0f} % of all pixels are ignored")
        return found


def check_dataset(data: SegmentationData, track: Track = no_progress) -> DatasetReport:
    """Read every image and mask; broken ones are listed and not counted."""
    report = DatasetReport()
    for item in track(data.items, "reading"):
        try:
            report.turned += any(map(is_turned, item.image_files))
            counts = np.bincount(data.read(item)[1].ravel())
        except FusionerError as error:
            report.broken.append(str(error))
            continue
        present = np.flatnonzero(counts).tolist()
        report.readable += 1
        report.images.update(present)
        report.pixels.update({value: int(counts[value]) for value in present})
    return report


def contact_sheet(data: SegmentationData, count: int, columns: int) -> Image.Image:
    """Draw `count` images, evenly spaced over the data set, in `columns` columns of `WIDTH` px."""
    if min(count, columns) < 1:
        raise FusionerError(f"a contact sheet needs at least one cell, not {count} in {columns} columns")
    chosen = np.linspace(0, len(data.items) - 1, min(count, len(data.items))).round().astype(int)
    return arrange_grid([_cell(data, data.items[i]) for i in chosen], columns, gap=WIDTH // 40)


def _cell(data: SegmentationData, item: Item) -> Image.Image:
    rgb, mask = data.read(item)
    # Resized before the legend is drawn, so that all legends have the same font size.
    rgb, (mask,) = resize_with_maps(rgb, [mask], (WIDTH, max(1, round(len(rgb) * WIDTH / rgb.shape[1]))))
    classes = [i for i in np.unique(mask).tolist() if i not in (0, data.ignore)]
    table = np.zeros(65536, np.uint16)
    table[classes] = np.arange(1, len(classes) + 1)
    cell = overlay(rgb, [table[mask]], [data.classes[i] for i in classes])
    return cell if cell.width == WIDTH else cell.resize((WIDTH, round(cell.height * WIDTH / cell.width)))
