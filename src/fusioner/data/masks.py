"""Reading mask files: stored class ids, not palette colours or converted grey values."""

from pathlib import Path

import numpy as np
from PIL import Image

from fusioner.errors import FusionerError

_INDEXED = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_mask(path: Path) -> np.ndarray:
    """Read the class ids of an indexed or grey mask file.

    Args:
        path: a PNG (or any lossless indexed or grey format that Pillow reads).

    Returns:
        (H, W) uint8, or uint16 if the file holds 16-bit values.

    Raises:
        FusionerError: missing, empty, truncated or unreadable file, colour picture, JPEG, value above 65535.
    """
    try:
        with Image.open(path) as picture:
            if picture.format == "JPEG":
                raise FusionerError(f"mask {path} is a JPEG, whose lossy values are no class ids; save masks as PNG")
            if picture.mode not in _INDEXED:
                raise FusionerError(
                    f"mask {path} is a colour picture (mode {picture.mode}); save it as an indexed or grey PNG "
                    "whose pixel values are class ids"
                )
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


def _grey_scale(path: Path) -> int:
    """Factor by which Pillow scales the values of 2- and 4-bit grey PNG files to 0..255 (1 for all other files)."""
    with path.open("rb") as file:
        header = file.read(26)
    is_grey = len(header) == 26 and header.startswith(_PNG_SIGNATURE) and header[25] == 0
    return {2: 85, 4: 17}.get(header[24], 1) if is_grey else 1
