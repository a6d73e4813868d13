"""Contact sheets: many small pictures on a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.io import atomic_write
from fusioner.legend import INK, PAPER, Entry, legend, write_line
from fusioner.palette import colour
from fusioner.visualization import paint

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation

WIDTH, COLUMNS, PAGE = 280, 6, 60  # px a thumbnail, thumbnails a row, thumbnails a page
_FONT = 15  # px


def arrange(cells: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Pictures of one width on a page, each below the shortest column: tall and wide ones leave no holes."""
    width = cells[0].width
    tops = [gap] * min(columns, len(cells))
    places: list[tuple[int, int]] = []
    for cell in cells:
        column = tops.index(min(tops))
        places.append((gap + column * (width + gap), tops[column]))
        tops[column] += cell.height + gap
    page = Image.new("RGB", (len(tops) * (width + gap) + gap, max(tops)), PAPER)
    for cell, place in zip(cells, places, strict=True):
        page.paste(cell, place)
    return page


def shrink(
    rgb: UInt8[np.ndarray, "h w 3"], numbers: Integer[np.ndarray, "h w"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], Integer[np.ndarray, "h2 w2"]]:
    """A picture and its map at `size` (width, height): before colours and lines are drawn, so that these stay crisp."""
    small = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
    shrunk = Image.fromarray(numbers.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small), np.asarray(shrunk)


def thumbnail(result: "Segmentation", name: str) -> Image.Image:
    """A result `WIDTH` px wide and at most twice as high, its name below."""
    scale = min(WIDTH / result.width, 2 * WIDTH / result.height)
    size = max(1, round(result.width * scale)), max(1, round(result.height * scale))
    picture = Image.fromarray(paint(*shrink(result.image, result.label_map, size), opacity=0.45))
    line = write_line(_shorten(name), _FONT, INK)
    cell = Image.new("RGB", (WIDTH, picture.height + line.height), PAPER)
    cell.paste(picture, ((WIDTH - picture.width) // 2, 0))
    cell.paste(line, (0, picture.height))
    return cell


def with_names(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    """A legend of the labels' colours and names below a picture: the same below any picture of that size."""
    strip = _names(labels, picture.width, max(80, picture.height // 3))
    page = Image.new("RGB", (picture.width, picture.height + strip.height), PAPER)
    page.paste(picture, (0, 0))
    page.paste(strip, (0, picture.height))
    return page


class ContactSheet:
    """Pages of `PAGE` thumbnails under one legend: `sheet.png`, then `sheet-2.png` and so on."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        """FusionerError when the name does not end in .png or .jpg."""
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise FusionerError(f"a contact sheet's name ends in .png or .jpg, not as {path.name!r}")
        self.paths: list[Path] = []
        self._path, self._labels, self._cells = path, labels, list[Image.Image]()

    def add(self, cell: Image.Image) -> None:
        """One more thumbnail; writes the page that it fills."""
        self._cells.append(cell)
        if len(self._cells) == PAGE:
            self.write()

    def write(self) -> None:
        """Write the thumbnails that no page has yet; FusionerError when that fails."""
        if not self._cells:
            return
        thumbnails = arrange(self._cells, COLUMNS, gap=WIDTH // 20)
        strip = _names(self._labels, max(thumbnails.width, 3 * WIDTH), most=WIDTH)
        page = Image.new("RGB", (strip.width, thumbnails.height + strip.height), PAPER)
        page.paste(strip, (0, 0))
        page.paste(thumbnails, (0, strip.height))
        number = len(self.paths) + 1
        path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
        with atomic_write(path) as beside:
            page.save(beside)
        self.paths.append(path)
        self._cells = []


def _names(labels: Sequence[str], width: int, most: int) -> Image.Image:
    return legend([Entry(i, label, colour(i), None) for i, label in enumerate(labels, start=1)], width, most)


def _shorten(name: str, letters: int = 34) -> str:
    """Both ends of a long name, which tell files apart."""
    half = letters // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"
