"""The strip below an overlay: colour chips, names, and how much of the image each covers."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont

from fusioner.palette import Colour

PAPER: Colour = (250, 250, 249)
INK: Colour = (28, 30, 34)
FAINT: Colour = (132, 136, 144)
# Fonts of wide coverage that systems carry, tried in turn for letters the bundled one lacks.
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
_NO_LETTER = "\U0010fffe"  # a code point that no font draws: what it shows is the font's "missing" box


@dataclass(frozen=True)
class Entry:
    """A name of the legend, with its number in the map; `share` 0 means not found, None that it is of no interest."""

    number: int
    name: str
    colour: Colour
    share: float | None


def legend(entries: Sequence[Entry], width: int, most: int) -> Image.Image:
    """Entries one after another, in the order given, on a strip of `width` px and at most about `most` px high.

    What does not fit is counted, "+ 12 more", and of a long list of names that were not found only the first two rows
    stand. Names that no font at hand can write stand as their number.
    """
    size = max(12, min(40, round(width / 46)))
    margin, line = size, round(size * 1.75)
    rows = max(1, (most - margin) // line)
    places: list[tuple[Image.Image, int, int]] = []  # cell, x, row
    x, row = margin, 0
    for index, entry in enumerate(entries):
        cell = _cell(entry, size)
        if x > margin and x + cell.width > width - margin:
            x, row = margin, row + 1
        if entry.share == 0 and (index == 0 or entries[index - 1].share != 0):
            rows = min(rows, row + 2)
        if row == rows:
            places.append(_rest(entries, places, width - margin, size))
            break
        places.append((cell, x, row))
        x += cell.width + round(1.6 * size)
    strip = Image.new("RGB", (width, (places[-1][2] + 1) * line + margin), PAPER)
    for cell, left, row in places:
        strip.paste(cell.crop((0, 0, min(cell.width, width - left), line)), (left, margin // 2 + row * line))
    return strip


def _rest(
    entries: Sequence[Entry], places: list[tuple[Image.Image, int, int]], end: int, size: int
) -> tuple[Image.Image, int, int]:
    """How many more entries there are, in the room of the last cells, which are taken away."""
    while True:
        _, x, row = places.pop()
        left = entries[len(places) :]
        what = "more" if left[0].share != 0 else "more not found"
        cell = write_line(f"+ {len(left)} {what}", size, FAINT)
        if x + cell.width <= end or not places or places[-1][2] != row:
            return cell, x, row


def share_text(share: float) -> str:
    """0.1234 -> `12.3 %`, a trace -> `<0.1 %`, nothing -> `not found`."""
    if share == 0:
        return "not found"
    return "<0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def _cell(entry: Entry, size: int) -> Image.Image:
    found = entry.share != 0
    name = write_line(_shorten(entry.name), size, INK if found else FAINT, f"label {entry.number}")
    share = None if entry.share is None else write_line(share_text(entry.share), size, FAINT)
    chip, space = round(size * 1.05), round(size * 0.55)
    width = chip + space + name.width + (space + share.width if share else 0)
    cell = Image.new("RGB", (width, name.height), PAPER)
    cell.paste(_chip(entry.colour, chip, found), (0, (cell.height - chip) // 2))
    cell.paste(name, (chip + space, 0))
    if share:
        cell.paste(share, (chip + 2 * space + name.width, 0))
    return cell


def _chip(colour: Colour, side: int, filled: bool) -> Image.Image:
    """A rounded square, drawn four times as large and shrunk so that its edge is smooth."""
    big = Image.new("RGB", (4 * side, 4 * side), PAPER)
    shape = (0, 0, 4 * side - 1, 4 * side - 1)
    fill = colour if filled else None
    ImageDraw.Draw(big).rounded_rectangle(shape, radius=side, fill=fill, outline=colour, width=max(4, side // 3))
    return big.resize((side, side), Image.Resampling.BOX)


def write_line(text: str, size: int, ink: Colour, otherwise: str = "?") -> Image.Image:
    """One line of text, as wide as it is, `size` px; or `otherwise` where no font has its letters."""
    font = _font_for(text, size)
    if font is None:
        text, font = otherwise, ImageFont.load_default(size)
    height = round(size * 1.75)
    strip = Image.new("RGB", (max(1, round(font.getlength(text))), height), PAPER)
    ImageDraw.Draw(strip).text((0, height / 2), text, fill=ink, font=font, anchor="lm")
    return strip


def _shorten(name: str, letters: int = 32) -> str:
    return name if len(name) <= letters else name[: letters - 1].rstrip() + "…"


def _font_for(text: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    default = ImageFont.load_default(size)
    if _can_write(default, text):
        return default
    for name in _FONTS:
        font = _system_font(name, size)
        if font is not None and _can_write(font, text):
            return font
    return None


@lru_cache(maxsize=64)
def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _can_write(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    """Whether the font has a glyph for every letter (marks that join letters are taken on trust)."""
    try:
        missing = _shape(font, _NO_LETTER)
        letters = {letter for letter in text if not letter.isspace() and not _is_mark(letter)}
        return all(_shape(font, letter) != missing for letter in letters)
    except (UnicodeError, ValueError, OSError):
        return False


def _shape(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> bytes:
    return bytes(cast("Any", font.getmask(letter)))


def _is_mark(letter: str) -> bool:
    return unicodedata.category(letter) in ("Mn", "Mc", "Me", "Cf")
