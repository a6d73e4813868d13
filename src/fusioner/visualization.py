"""Pictures of segmentations: colours, overlays, legends and contact sheets."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fusioner.errors import FusionerError
from fusioner.io import atomic_write, check_replaceable

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

MIN_SIDE = 320  # longest side of an overlay, px: smaller images are enlarged
THUMBNAIL_WIDTH, THUMBNAIL_COLUMNS, THUMBNAILS_PER_PAGE = 280, 6, 60
THUMBNAIL_FONT_SIZE = 15  # px
PAPER: Colour = (250, 250, 249)
INK: Colour = (28, 30, 34)
MUTED: Colour = (132, 136, 144)

# Found by search: at least 0.12 apart in OKLab for normal vision and three kinds of colour blindness (Machado 2009).
_FIRST_COLOURS: tuple[Colour, ...] = (
    (15, 79, 238),  # blue
    (231, 138, 0),  # orange
    (12, 246, 243),  # cyan
    (255, 47, 102),  # rose
    (172, 215, 8),  # lime
    (163, 91, 183),  # violet
    (172, 53, 18),  # brick
    (0, 168, 157),  # teal
    (228, 152, 237),  # lilac
    (228, 244, 114),  # straw
)
_GOLDEN_ANGLE = math.tau * (1 - 1 / ((1 + 5**0.5) / 2))
_LIGHTNESS = (0.72, 0.56, 0.84)
# System fonts with wide coverage, tried in turn for characters that the bundled font lacks.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "segoeui.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
)
_UNASSIGNED = "\U0010fffe"  # no font has this code point: it renders as the font's "missing glyph" box


def colour(number: int) -> Colour:
    """Return the sRGB colour of label `number` (1, 2, ...); 0, the background, is black."""
    if number == 0:
        return (0, 0, 0)
    if number <= len(_FIRST_COLOURS):
        return _FIRST_COLOURS[number - 1]
    index = number - len(_FIRST_COLOURS) - 1
    return _oklch_to_srgb(_LIGHTNESS[index % len(_LIGHTNESS)], 0.16, 0.5 + index * _GOLDEN_ANGLE)


def hex_colour(number: int) -> str:
    """Return `colour` as "#RRGGBB"."""
    return "#{:02X}{:02X}{:02X}".format(*colour(number))


def colours(count: int) -> list[Colour]:
    """Return the colours of the numbers 0 .. count - 1."""
    return [colour(number) for number in range(count)]


def _oklch_to_srgb(lightness: float, chroma: float, hue: float) -> Colour:
    """Convert from Oklab's polar form (bottosson.github.io), reducing chroma until the colour is inside sRGB."""
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        )
        if all(-1e-4 <= value <= 1 + 1e-4 for value in linear):
            red, green, blue = (round(255 * _gamma(min(1.0, max(0.0, value)))) for value in linear)
            return red, green, blue
        chroma -= 0.005


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    layers: Sequence[Integer[np.ndarray, "h w"]],
    labels: Sequence[str],
    *,
    opacity: float = 0.45,
    legend: bool = True,
) -> Image.Image:
    """Draw translucent masks with outlines over an image, and a legend below it, largest label first.

    Args:
        image: upright RGB.
        layers: label maps, drawn one over the other: for every pixel the number of its label, from 1, or 0.
        labels: the names.
        opacity: of the masks, 0..1; outlines are solid.
        legend: whether to add the legend.
    """
    counts = np.sum([np.bincount(layer.ravel(), minlength=len(labels) + 1) for layer in layers], axis=0)
    coverage = counts[1:] / layers[0].size
    height, width = layers[0].shape
    longest = max(width, height)
    if longest < MIN_SIDE:
        factor = -(-MIN_SIDE // longest)
        image, layers = resize_with_maps(image, layers, (width * factor, height * factor), Image.Resampling.BICUBIC)
    picture = Image.fromarray(draw_masks(image, layers, opacity))
    if not legend or not labels:
        return picture
    order = sorted(range(len(labels)), key=lambda index: -coverage[index])
    entries = [LegendEntry(index + 1, labels[index], float(coverage[index])) for index in order]
    return _stack(picture, draw_legend(entries, max(picture.width, MIN_SIDE), max(160, picture.height // 2)))


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"], layers: Sequence[Integer[np.ndarray, "h w"]], opacity: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Colour the pixels of every label and outline each region; lines are 1/300 of the longest side wide.

    `layers` are label maps, drawn one over the other.
    """
    photo = Image.fromarray(image)
    labelled = np.any([layer > 0 for layer in layers], axis=0)
    # The background is darkened slightly, unless nothing was found.
    canvas = Image.composite(photo, _darken(photo, 0.82), _to_pillow_mask(labelled)) if labelled.any() else photo
    thickness = max(1, round(max(labelled.shape) / 300))
    for layer in layers:
        solid = Image.fromarray(np.asarray(colours(int(layer.max()) + 1), np.uint8)[layer])
        inside = layer > 0
        canvas.paste(Image.blend(canvas, solid, opacity), mask=_to_pillow_mask(inside))
        rim = _borders(layer, max(1, thickness // 2)) & ~inside  # keeps the line visible on bright ground
        canvas.paste(_darken(photo, 0.37), mask=_to_pillow_mask(rim))
        canvas.paste(solid, mask=_to_pillow_mask(_borders(layer, thickness) & inside))
    return np.asarray(canvas)


def resize_with_maps(
    rgb: UInt8[np.ndarray, "h w 3"],
    label_maps: Sequence[Integer[np.ndarray, "_ _"]],
    size: tuple[int, int],
    resample: Image.Resampling = Image.Resampling.LANCZOS,
) -> tuple[UInt8[np.ndarray, "h2 w2 3"], list[Integer[np.ndarray, "h2 w2"]]]:
    """Resize an image and label maps of any size to `size` (width, height) before drawing, so that lines stay crisp."""
    nearest = Image.Resampling.NEAREST
    resized = [np.asarray(Image.fromarray(numbers.astype(np.int32)).resize(size, nearest)) for numbers in label_maps]
    return np.asarray(Image.fromarray(rgb).resize(size, resample)), resized


def _darken(image: Image.Image, factor: float) -> Image.Image:
    return image.point([round(factor * value) for value in range(256)] * 3)


def _to_pillow_mask(mask: Bool[np.ndarray, "h w"]) -> Image.Image:
    return Image.fromarray(mask.view(np.uint8) * np.uint8(255))


def _borders(label_map: Integer[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """Return the pixels within `thickness` of a different label, on both sides of the border."""
    border = np.zeros(label_map.shape, bool)
    down, right = label_map[1:] != label_map[:-1], label_map[:, 1:] != label_map[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    for _ in range(thickness - 1):
        dilated = border.copy()
        dilated[1:] |= border[:-1]
        dilated[:-1] |= border[1:]
        dilated[:, 1:] |= border[:, :-1]
        dilated[:, :-1] |= border[:, 1:]
        border = dilated
    return border


def _stack(top: Image.Image, bottom: Image.Image) -> Image.Image:
    """Place one picture below another, the first centred."""
    width = max(top.width, bottom.width)
    page = Image.new("RGB", (width, top.height + bottom.height), PAPER)
    page.paste(top, ((width - top.width) // 2, 0))
    page.paste(bottom, (0, top.height))
    return page


@dataclass(frozen=True)
class LegendEntry:
    """A label of the legend; `coverage` 0 reads "not found", None leaves the coverage out."""

    number: int
    name: str
    coverage: float | None = None


def draw_legend(entries: Sequence[LegendEntry], width: int, max_height: int) -> Image.Image:
    """Draw colour chips, names and coverage, in the order given, on a strip `width` px wide.

    Entries beyond about `max_height` px are replaced by their count ("+ 12 more"), and labels that were not found take
    two rows at most. Names that no available font can write are replaced by their number.
    """
    size = max(12, min(40, round(width / 46)))
    margin, line_height = size, round(size * 1.75)
    max_rows = max(1, (max_height - margin) // line_height)
    cells: list[tuple[Image.Image, int, int]] = []  # picture, x, row
    x, row = margin, 0
    for index, entry in enumerate(entries):
        cell = _legend_cell(entry, size)
        if x > margin and x + cell.width > width - margin:
            x, row = margin, row + 1
        if entry.coverage == 0 and (index == 0 or entries[index - 1].coverage != 0):
            max_rows = min(max_rows, row + 2)
        if row == max_rows:
            cells.append(_remaining_cell(entries, cells, width - margin, size))
            break
        cells.append((cell, x, row))
        x += cell.width + round(1.6 * size)
    strip = Image.new("RGB", (width, (cells[-1][2] + 1) * line_height + margin), PAPER)
    for cell, left, row in cells:
        visible = cell.crop((0, 0, min(cell.width, width - left), line_height))
        strip.paste(visible, (left, margin // 2 + row * line_height))
    return strip


def format_coverage(coverage: float) -> str:
    """Format 0.1234 as "12.3 %", a trace as "<0.1 %" and 0 as "not found"."""
    if coverage == 0:
        return "not found"
    return "<0.1 %" if coverage < 0.001 else f"{100 * coverage:.1f} %"


def _remaining_cell(
    entries: Sequence[LegendEntry], cells: list[tuple[Image.Image, int, int]], right: int, size: int
) -> tuple[Image.Image, int, int]:
    """Replace the last cells by the count of the entries that are not shown."""
    while True:
        _, x, row = cells.pop()
        remaining = entries[len(cells) :]
        suffix = "more" if remaining[0].coverage != 0 else "more not found"
        cell = draw_text(f"+ {len(remaining)} {suffix}", size, MUTED)
        if x + cell.width <= right or not cells or cells[-1][2] != row:
            return cell, x, row


def _legend_cell(entry: LegendEntry, size: int) -> Image.Image:
    found = entry.coverage != 0
    text = entry.name if len(entry.name) <= 32 else entry.name[:31].rstrip() + "…"
    name = draw_text(text, size, INK if found else MUTED, f"label {entry.number}")
    coverage = None if entry.coverage is None else draw_text(format_coverage(entry.coverage), size, MUTED)
    side, gap = round(size * 1.05), round(size * 0.55)
    width = side + gap + name.width + (gap + coverage.width if coverage else 0)
    cell = Image.new("RGB", (width, name.height), PAPER)
    cell.paste(_chip(colour(entry.number), side, found), (0, (cell.height - side) // 2))
    cell.paste(name, (side + gap, 0))
    if coverage:
        cell.paste(coverage, (side + 2 * gap + name.width, 0))
    return cell


def _chip(fill: Colour, side: int, filled: bool) -> Image.Image:
    """Draw a rounded square, four times as large and then shrunk for antialiasing."""
    large = Image.new("RGB", (4 * side, 4 * side), PAPER)
    ImageDraw.Draw(large).rounded_rectangle(
        (0, 0, 4 * side - 1, 4 * side - 1),
        radius=side,
        fill=fill if filled else None,
        outline=fill,
        width=max(4, side // 3),
    )
    return large.resize((side, side), Image.Resampling.BOX)


def draw_text(text: str, size: int, ink: Colour, fallback: str = "?") -> Image.Image:
    """Draw one line of text `size` px high, or `fallback` if no available font has its characters."""
    font = _font_for(text, size)
    if font is None:
        text, font = fallback, ImageFont.load_default(size)
    height = round(size * 1.75)
    strip = Image.new("RGB", (max(1, round(font.getlength(text))), height), PAPER)
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=ink, font=font, anchor="lm")
    return strip


def _font_for(text: str, size: int) -> Font | None:
    candidates = (ImageFont.load_default(size), *(_system_font(name, size) for name in _FONTS))
    return next((font for font in candidates if font is not None and _has_glyphs(font, text)), None)


@lru_cache(maxsize=64)
def _system_font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has_glyphs(font: Font, text: str) -> bool:
    """Whether the font has a glyph for every character, combining marks aside."""
    try:
        missing = _glyph(font, _UNASSIGNED)
        marks = ("Mn", "Mc", "Me", "Cf")
        letters = {char for char in text if not char.isspace() and unicodedata.category(char) not in marks}
        return all(_glyph(font, letter) != missing for letter in letters)
    except (UnicodeError, ValueError, OSError):
        return False


def _glyph(font: Font, letter: str) -> bytes:
    return bytes(cast("Any", font.getmask(letter)))


def add_legend(picture: Image.Image, labels: Sequence[str]) -> Image.Image:
    """Add a legend of colours and names below a picture; its size depends on the labels and the picture's size only."""
    return _stack(picture, _label_legend(labels, picture.width, max(80, picture.height // 3)))


def _label_legend(labels: Sequence[str], width: int, max_height: int) -> Image.Image:
    return draw_legend([LegendEntry(i, label) for i, label in enumerate(labels, start=1)], width, max_height)


def arrange_grid(cells: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Arrange pictures of equal width on a page, each below the shortest column."""
    width = cells[0].width
    bottoms = [gap] * min(columns, len(cells))
    positions: list[tuple[int, int]] = []
    for cell in cells:
        column = bottoms.index(min(bottoms))
        positions.append((gap + column * (width + gap), bottoms[column]))
        bottoms[column] += cell.height + gap
    page = Image.new("RGB", (len(bottoms) * (width + gap) + gap, max(bottoms)), PAPER)
    for cell, position in zip(cells, positions, strict=True):
        page.paste(cell, position)
    return page


def thumbnail(result: "Segmentation", name: str) -> Image.Image:
    """Draw a result `THUMBNAIL_WIDTH` px wide and at most twice as high, its name below."""
    scale = min(THUMBNAIL_WIDTH / result.width, 2 * THUMBNAIL_WIDTH / result.height)
    size = max(1, round(result.width * scale)), max(1, round(result.height * scale))
    picture = Image.fromarray(draw_masks(*resize_with_maps(result.image, result.layers, size), opacity=0.45))
    text = name if len(name) <= 34 else f"{name[:17]}…{name[-17:]}"  # both ends distinguish file names
    line = draw_text(text, THUMBNAIL_FONT_SIZE, INK)
    return _stack(picture, line.crop((0, 0, THUMBNAIL_WIDTH, line.height)))


class ContactSheet:
    """Pages of thumbnails under one legend: `sheet.png`, then `sheet-2.png` and so on.

    Attributes:
        paths: the pages written.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        """Raises FusionerError if the name does not end in .png or .jpg."""
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            raise FusionerError(f"a contact sheet's name must end in .png or .jpg, not {path.name!r}")
        check_replaceable(path)
        self.paths: list[Path] = []
        self._path, self._labels, self._cells = path, labels, list[Image.Image]()

    def add(self, cell: Image.Image) -> None:
        """Add a thumbnail; a full page is written."""
        self._cells.append(cell)
        if len(self._cells) == THUMBNAILS_PER_PAGE:
            self.write()

    def write(self) -> None:
        """Write the thumbnails that are on no page yet; FusionerError if that fails."""
        if not self._cells:
            return
        thumbnails = arrange_grid(self._cells, THUMBNAIL_COLUMNS, gap=THUMBNAIL_WIDTH // 20)
        strip = _label_legend(self._labels, max(thumbnails.width, 3 * THUMBNAIL_WIDTH), max_height=THUMBNAIL_WIDTH)
        page = Image.new("RGB", (strip.width, strip.height + thumbnails.height), PAPER)
        page.paste(strip, (0, 0))
        page.paste(thumbnails, (0, strip.height))
        number = len(self.paths) + 1
        path = self._path if number == 1 else self._path.with_stem(f"{self._path.stem}-{number}")
        save_marked(page, path)
        self.paths.append(path)
        self._cells = []


def png_mark() -> PngInfo:
    """Return the text chunk that marks PNG files of this program, see `io.check_replaceable`."""
    mark = PngInfo()
    mark.add_text("Software", "Fusioner")
    return mark


def save_marked(image: Image.Image, path: Path) -> None:
    """Write a PNG or JPEG file; raises FusionerError if it cannot be written or another program's file is there."""
    check_replaceable(path)
    mark: dict[str, Any] = {"pnginfo": png_mark()} if path.suffix.lower() == ".png" else {"comment": "Fusioner"}
    with atomic_write(path) as temporary:
        image.save(temporary, **mark)
