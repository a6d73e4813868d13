"""Reading mask files: stored class ids, not palette colours or converted grey values."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image

from fusioner.errors import FusionerError

_INDEXED = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


Colour = tuple[int, ...]
VOC_PALETTE: dict[Colour, int] = {
    tuple(sum((value >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)): value
    for value in range(256)
}
"""PASCAL VOC's colours (r, g, b) -> mask value."""


def parse_mask_values(text: str) -> dict[int, int | None]:
    """Parse `255=1,7=ignore`: mask value -> the value to read it as, None for ignored."""
    try:
        entries = [entry.split("=") for entry in text.split(",") if entry]
        return {int(value): None if other.strip() == "ignore" else int(other) for value, other in entries}
    except ValueError:
        raise FusionerError(f"--mask-values must be pairs like 255=1 or 7=ignore, not {text!r}") from None


def read_mask(path: Path, colours: Mapping[Colour, int] | None = None) -> np.ndarray:
    """Read the class ids of a lossless mask file, (H, W) uint8, or uint16 if there are ids above 255.

    Args:
        colours: (r, g, b) -> class id. Default: the stored values of indexed and grey files, also of those saved as RGB
            with equal channels; PASCAL VOC's colours for other RGB files.
    """
    try:
        with Image.open(path) as picture:
            if picture.format == "JPEG":
                raise FusionerError(f"mask {path} is a JPEG, whose lossy values are no class ids; save masks as PNG")
            if colours or picture.mode not in _INDEXED:
                return _by_colour(np.asarray(picture.convert("RGB")), colours, path)
            values = np.asarray(picture)
    except FileNotFoundError:
        raise FusionerError(f"mask {path} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FusionerError(f"mask {path} cannot be read: {error}") from error
    if values.dtype in (np.dtype(bool), np.dtype(np.uint8)):
        return values.astype(np.uint8) // _grey_scale(path)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise FusionerError(f"mask {path} holds values outside 0..65535")
    return values.astype(np.uint16)


def resize_mask(mask: Integer[np.ndarray, "h w"], size: tuple[int, int]) -> Integer[np.ndarray, "h2 w2"]:
    """Resize to (height, width) by nearest neighbour at pixel centres."""
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns[None, :]]


def _by_colour(rgb: np.ndarray, colours: Mapping[Colour, int] | None, path: Path) -> np.ndarray:
    if colours is None and (rgb == rgb[..., :1]).all():
        return rgb[..., 0]
    table = {65536 * r + 256 * g + b: value for (r, g, b), value in sorted((colours or VOC_PALETTE).items())}
    codes = rgb.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    known = np.array(list(table), np.int32)
    index = np.searchsorted(known, codes).clip(max=len(known) - 1)
    if (unknown := known[index] != codes).any():
        colour = ",".join(map(str, rgb[unknown][0]))
        raise FusionerError(
            f"mask {path} is a colour picture with the colour {colour}, which is none of the {len(table)} known ones; "
            "list the colours under `colors` in classes.yaml, or save an indexed or grey PNG of class ids"
        )
    values = np.array(list(table.values()))[index]
    return values.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)


def _grey_scale(path: Path) -> int:
    """Factor by which Pillow scales the values of 2- and 4-bit grey PNG files to 0..255 (1 for all other files)."""
    with path.open("rb") as file:
        header = file.read(26)
    is_grey = len(header) == 26 and header.startswith(_PNG_SIGNATURE) and header[25] == 0
    return {2: 85, 4: 17}.get(header[24], 1) if is_grey else 1
