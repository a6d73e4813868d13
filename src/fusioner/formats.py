"""The files a segmentation is kept in: what each kind is called, and who writes it."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from fusioner import annotation_export as exports
from fusioner.errors import FusionerError
from fusioner.io import atomic_write
from fusioner.palette import colours, hex_colour

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation


class Kind(NamedTuple):
    """One way to keep a segmentation.

    Attributes:
        ending: of the file's name, after the stem.
        media_type: what HTTP calls it.
        write: (segmentation, open binary file) -> None.
        text: what it is, for menus and help.
    """

    ending: str
    media_type: str
    write: Callable[["Segmentation", BinaryIO], None]
    text: str


def describe(result: "Segmentation") -> dict[str, Any]:
    """All there is to tell as plain values: the image, how it was decided, and per label what was found.

    `rle` is COCO's compressed run-length encoding, as pycocotools reads it; `box` is [x, y, width, height]; of each
    of the `polygons` the first ring is the outline and the others are holes, see `inference.polygons`.
    """
    return {
        "image": result.name,
        "width": result.width,
        "height": result.height,
        "labels": list(result.labels),
        "threshold": result.threshold,
        "background": result.background,
        **result.looks.told(),
        "mask": {"bits": mask_bits(len(result.labels)), "values": "0 is background, i the i-th of labels"},
        "segments": [
            {
                "id": number,
                "label": label,
                "color": hex_colour(number),
                "pixels": result.areas[label],
                "coverage": round(result.coverage[label], 6),
                "score": round(result.scores[label], 6),
                "box": list(result.boxes[label]),
                "rle": exports.run_lengths(result, label),
                "polygons": [[ring.tolist() for ring in polygon] for polygon in result.polygons(label)],
            }
            for number, label in enumerate(result.labels, start=1)
        ],
    }


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


def _write_overlay(result: "Segmentation", file: BinaryIO) -> None:
    result.overlay().save(file, format="PNG")


def _write_mask(result: "Segmentation", file: BinaryIO) -> None:
    mask_image(result.label_map, len(result.labels)).save(file, format="PNG")


def _as_json(convert: Callable[["Segmentation"], dict[str, Any]]) -> Callable[["Segmentation", BinaryIO], None]:
    return lambda result, file: exports.write_plain(convert(result), file)


def _as_text(convert: Callable[["Segmentation"], str]) -> Callable[["Segmentation", BinaryIO], None]:
    return lambda result, file: exports.write_text(convert(result), file)


KINDS: dict[str, Kind] = {
    "overlay": Kind(".overlay.png", "image/png", _write_overlay, "the picture in colours, with a legend"),
    "mask": Kind(".png", "image/png", _write_mask, "indexed mask: 0 background, i the i-th label"),
    "json": Kind(".json", "application/json", _as_json(describe), "all there is to tell, as JSON"),
    "coco": Kind(".coco.json", "application/json", _as_json(exports.coco), "COCO, run lengths and polygons"),
    "labelme": Kind(".labelme.json", "application/json", _as_json(exports.labelme), "LabelMe polygons"),
    "yolo": Kind(".yolo.txt", "text/plain", _as_text(exports.yolo), "YOLO (Ultralytics) polygons"),
    "cvat": Kind(".cvat.xml", "application/xml", _as_text(exports.cvat), "CVAT for images 1.1, masks"),
    "geojson": Kind(".geojson", "application/geo+json", _as_json(exports.geojson), "GeoJSON polygons, in pixels"),
    "npz": Kind(".npz", "application/octet-stream", exports.write_npz, "NumPy: map, probabilities, labels"),
}
"""What `save` and `to_bytes` know."""

DEFAULT_KINDS = ("overlay", "mask", "json")


def save(
    result: "Segmentation", folder: str | Path, stem: str = "image", kinds: Sequence[str] = DEFAULT_KINDS
) -> dict[str, Path]:
    """Write `<folder>/<stem><ending>` for each of `kinds` -> paths by kind; all of them or, on an error, none.

    Raises:
        FusionerError: the folder cannot be written to, `stem` is no file name, or a kind is unknown.
    """
    if not stem.strip(".") or Path(stem).name != stem:
        raise FusionerError(f"'{stem}' is no file name: give one without folders")
    paths = {kind: Path(folder) / f"{stem}{find_kind(kind).ending}" for kind in kinds}
    with ExitStack() as stack:  # files get their names only after the last of them is written
        for kind, path in paths.items():
            with stack.enter_context(atomic_write(path)).open("wb") as file:
                KINDS[kind].write(result, file)
    return paths


def to_bytes(result: "Segmentation", kind: str) -> bytes:
    """The content of the file that `save` would write; FusionerError when the kind is unknown."""
    stream = BytesIO()
    find_kind(kind).write(result, stream)
    return stream.getvalue()


def find_kind(name: str) -> Kind:
    """The kind of that name; FusionerError when there is none."""
    if name not in KINDS:
        raise FusionerError(f"there is no format '{name}': choose from {', '.join(KINDS)}")
    return KINDS[name]
