"""Contact sheets: what a data set looks like, masks and names over the photographs."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from PIL import Image

from fusioner.contact_sheet import arrange, shrink
from fusioner.data.base import Item, SegmentationData
from fusioner.errors import FusionerError
from fusioner.segmentation import Segmentation


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
    return arrange(cells, columns, gap=max(4, width // 40))


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
    picture = labelled(*shrink(rgb, mask, size), data)
    return picture if picture.width == width else picture.resize((width, round(picture.height * width / picture.width)))
