"""Contact sheets: what a data set looks like, masks and names over the photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError
from fusioner.inference.segmentation import Segmentation

_PAPER = (255, 255, 255)


def contact_sheet(data: SegmentationData, count: int = 12, columns: int = 4, width: int = 360) -> Image.Image:
    """`count` images spread evenly over the set, each under its mask with a legend of names and coverage.

    Args:
        columns: cells a row; width: of a cell, px.

    Raises:
        FusionerError: no cell to show, an unreadable image or mask.
    """
    if min(count, columns, width) < 1:
        raise FusionerError(f"a contact sheet needs at least one cell, not {count} in {columns} columns")
    chosen = np.linspace(0, len(data.items) - 1, min(count, len(data.items))).round().astype(int)
    cells = [_cell(data, data.items[i], width) for i in chosen]
    gap = max(4, width // 40)
    tops = [gap] * min(columns, len(cells))
    places = []
    for cell in cells:  # each goes below the shortest column, so that tall and wide pictures leave no holes
        column = tops.index(min(tops))
        places.append((gap + column * (width + gap), tops[column]))
        tops[column] += cell.height + gap
    sheet = Image.new("RGB", (len(tops) * (width + gap) + gap, max(tops)), _PAPER)
    for cell, place in zip(cells, places, strict=True):
        sheet.paste(cell, place)
    return sheet


def labelled(rgb: UInt8[np.ndarray, "h w 3"], mask: Integer[np.ndarray, "h w"], data: SegmentationData) -> Image.Image:
    """A photograph under its mask, with the names of the classes in it."""
    present = [i for i in np.unique(mask).tolist() if i not in (0, data.ignore)]
    return truth(rgb, mask, present, [data.classes[i] for i in present]).overlay()


def truth(
    rgb: UInt8[np.ndarray, "h w 3"], mask: Integer[np.ndarray, "h w"], ids: Sequence[int], names: Sequence[str]
) -> Segmentation:
    """A mask as if it were an answer: value ids[i] becomes label i + 1, all others background."""
    table = np.zeros(65536, np.uint16)
    table[list(ids)] = np.arange(1, len(ids) + 1)
    return Segmentation(
        image=rgb,
        labels=tuple(names),
        label_map=table[mask],
        scores=dict.fromkeys(names, 1.0),
        threshold=0.0,
        background=True,
        name="mask",
        logits=torch.zeros(len(names), 1, 1),
    )


def _cell(data: SegmentationData, item: Item, width: int) -> Image.Image:
    """Shrunk before it is drawn on, so that legends are equally large in all cells."""
    rgb, mask = data.read(item)
    size = width, max(1, round(len(rgb) * width / rgb.shape[1]))
    small = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
    shrunk = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    picture = labelled(np.asarray(small), np.asarray(shrunk), data)
    return picture if picture.width == width else picture.resize((width, round(picture.height * width / picture.width)))
