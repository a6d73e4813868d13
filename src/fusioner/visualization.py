"""The picture people look at: the photograph, its masks in colour, and a legend."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from fusioner.legend import PAPER, Entry, legend
from fusioner.palette import colour, colours

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation

LEAST, MOST = 320, 2400  # longest side of the picture, px: smaller images are enlarged, larger ones shrunk


def overlay(result: "Segmentation", *, opacity: float = 0.45, legend: bool = True) -> Image.Image:
    """Translucent colours with crisp outlines over the photograph, and below it the legend, the largest label first.

    Args:
        result: what to show.
        opacity: of the colours, 0..1; outlines are solid.
        legend: False leaves the strip below away.
    """
    picture, numbers = _to_display(result)
    painted = Image.fromarray(paint(picture, numbers, opacity))
    return _with_legend(painted, result) if legend else painted


def paint(
    picture: UInt8[np.ndarray, "h w 3"], numbers: Shaped[np.ndarray, "h w"], opacity: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour the pixels of every label number and outline each region; the line is 1/300 of the longest side."""
    photograph = Image.fromarray(picture)
    solid = Image.fromarray(np.asarray(colours(int(numbers.max()) + 1), np.uint8)[numbers])
    inside = numbers > 0
    # What is not asked for steps back a little, unless there is nothing else.
    quiet = _darker(photograph, 0.82) if inside.any() else photograph
    canvas = Image.composite(Image.blend(photograph, solid, opacity), quiet, _stencil(inside))
    thickness = max(1, round(max(numbers.shape) / 300))
    rim = _border(numbers, max(1, thickness // 2)) & ~inside  # a dark rim sets the line off bright ground
    canvas.paste(_darker(photograph, 0.37), mask=_stencil(rim))
    canvas.paste(solid, mask=_stencil(_border(numbers, thickness) & inside))
    return np.asarray(canvas)


def _darker(image: Image.Image, share: float) -> Image.Image:
    return image.point([round(share * value) for value in range(256)] * 3)


def _stencil(where: Bool[np.ndarray, "h w"]) -> Image.Image:
    return Image.fromarray(where.view(np.uint8) * np.uint8(255))


def _border(numbers: Shaped[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels within `thickness` of another number, on either side of the border."""
    border = np.zeros(numbers.shape, bool)
    down, right = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    for _ in range(thickness - 1):
        wider = border.copy()
        wider[1:] |= border[:-1]
        wider[:-1] |= border[1:]
        wider[:, 1:] |= border[:, :-1]
        wider[:, :-1] |= border[:, 1:]
        border = wider
    return border


def _to_display(result: "Segmentation") -> tuple[UInt8[np.ndarray, "h w 3"], Shaped[np.ndarray, "h w"]]:
    """Image and label map at the size to look at; the map keeps its numbers."""
    longest = max(result.width, result.height)
    if LEAST <= longest <= MOST:
        return result.image, result.label_map
    factor = -(-LEAST // longest) if longest < LEAST else MOST / longest
    size = max(1, round(result.width * factor)), max(1, round(result.height * factor))
    numbers = Image.fromarray(result.label_map.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    kind = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(result.image).resize(size, kind)), np.asarray(numbers)


def _with_legend(picture: Image.Image, result: "Segmentation") -> Image.Image:
    shares = result.coverage
    order = sorted(range(len(result.labels)), key=lambda index: -shares[result.labels[index]])
    entries = [Entry(i + 1, result.labels[i], colour(i + 1), shares[result.labels[i]]) for i in order]
    width = max(picture.width, LEAST)
    strip = legend(entries, width, most=max(160, picture.height // 2))
    page = Image.new("RGB", (width, picture.height + strip.height), PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    page.paste(strip, (0, picture.height))
    return page
