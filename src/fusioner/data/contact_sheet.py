"""Contact sheets of data sets: images under their masks, with a legend of class names and coverage."""

import numpy as np
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError
from fusioner.visualization import arrange_grid, overlay, resize_with_map


def contact_sheet(data: SegmentationData, count: int = 12, columns: int = 4, width: int = 360) -> Image.Image:
    """Draw `count` images, spread evenly over the set, in `columns` columns of `width` px.

    Raises:
        FusionerError: a number is below 1, or an image or mask cannot be read.
    """
    if min(count, columns, width) < 1:
        raise FusionerError(f"a contact sheet needs at least one cell, not {count} in {columns} columns")
    chosen = np.linspace(0, len(data.items) - 1, min(count, len(data.items))).round().astype(int)
    return arrange_grid([_cell(data, data.items[i], width) for i in chosen], columns, gap=max(4, width // 40))


def _cell(data: SegmentationData, item: Item, width: int) -> Image.Image:
    rgb, mask = data.read(item)
    # Resized before the legend is drawn, which is then equally large in all cells.
    rgb, mask = resize_with_map(rgb, mask, (width, max(1, round(len(rgb) * width / rgb.shape[1]))))
    classes = [i for i in np.unique(mask).tolist() if i not in (0, data.ignore)]
    table = np.zeros(65536, np.uint16)
    table[classes] = np.arange(1, len(classes) + 1)
    cell = overlay(rgb, table[mask], [data.classes[i] for i in classes])
    return cell if cell.width == width else cell.resize((width, round(cell.height * width / cell.width)))
