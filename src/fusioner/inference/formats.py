"""The files a segmentation is kept in: a picture, an indexed mask, and JSON with COCO run lengths."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.files import atomic_write
from fusioner.inference.palette import colour, colours

if TYPE_CHECKING:
    from fusioner.inference.segmentation import Segmentation


def save(result: "Segmentation", folder: str | Path, stem: str = "image") -> dict[str, Path]:
    """Write every kind of `KINDS` to `<folder>/<stem><ending>` -> paths by kind; all of them or, on an error, none.

    Raises:
        FusionerError: the folder cannot be written to, or `stem` is no file name.
    """
    if not stem.strip(".") or Path(stem).name != stem:
        raise FusionerError(f"'{stem}' is no file name: give one without folders")
    paths = {kind: Path(folder) / f"{stem}{ending}" for kind, (ending, _) in KINDS.items()}
    with ExitStack() as stack:  # files get their names only after the last of them is written
        for kind, path in paths.items():
            KINDS[kind][1](result, stack.enter_context(atomic_write(path)))
    return paths


def write_overlay(result: "Segmentation", path: Path) -> None:
    """The picture with legend, as PNG."""
    result.overlay().save(path, format="PNG")


def write_mask(result: "Segmentation", path: Path) -> None:
    """Label numbers at the image's size, 0 = background: a palette PNG, or 16-bit grey for more than 255 labels."""
    mask_image(result.label_map, len(result.labels)).save(path, format="PNG")


def write_json(result: "Segmentation", path: Path) -> None:
    """`describe` as UTF-8 JSON."""
    text = json.dumps(describe(result), ensure_ascii=False, indent=1)
    path.write_bytes(text.encode("utf-8", "replace"))  # file names need not be valid text


KINDS: dict[str, tuple[str, Callable[["Segmentation", Path], None]]] = {
    "overlay": (".overlay.png", write_overlay),
    "mask": (".png", write_mask),
    "json": (".json", write_json),
}
"""What `save` writes: kind -> (ending, writer)."""


def mask_bits(labels: int) -> int:
    """Bits a pixel of the mask file: 8 (palette) up to 255 labels, 16 (grey) beyond."""
    return 8 if labels <= 255 else 16


def mask_image(label_map: UInt16[np.ndarray, "h w"], labels: int) -> Image.Image:
    """The label map as a Pillow image; in 8 bits with the overlay's colours as its palette."""
    if mask_bits(labels) == 16:
        return Image.fromarray(label_map.astype(np.uint16))
    image = Image.fromarray(label_map.astype(np.uint8))
    image.putpalette([value for one in colours(labels + 1) for value in one])
    return image


def describe(result: "Segmentation") -> dict[str, Any]:
    """All there is to tell as plain values: the image, how it was decided, and per label what was found.

    `rle` is COCO's compressed run-length encoding, as pycocotools reads it.
    """
    lengths = run_lengths(result)
    return {
        "image": result.name,
        "width": result.width,
        "height": result.height,
        "labels": list(result.labels),
        "threshold": result.threshold,
        "background": result.background,
        "mask": {"bits": mask_bits(len(result.labels)), "values": "0 is background, i the i-th of labels"},
        "segments": [
            {
                "id": number,
                "label": label,
                "color": "#{:02X}{:02X}{:02X}".format(*colour(number)),
                "pixels": result.pixels[label],
                "coverage": round(result.coverage[label], 6),
                "score": round(result.scores[label], 6),
                "rle": lengths[number - 1],
            }
            for number, label in enumerate(result.labels, start=1)
        ],
    }


def run_lengths(result: "Segmentation") -> list[dict[str, Any]]:
    """COCO RLE of every label's mask: {"size": [height, width], "counts": str}."""
    from pycocotools import mask

    columns = np.asfortranarray(result.label_map)
    empty = _encode(mask, np.zeros_like(columns, dtype=np.uint8, order="F"))
    return [
        _encode(mask, (columns == number).view(np.uint8)) if result.pixels[label] else dict(empty)
        for number, label in enumerate(result.labels, start=1)
    ]


def _encode(mask: Any, plane: np.ndarray) -> dict[str, Any]:
    encoded = mask.encode(plane)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
