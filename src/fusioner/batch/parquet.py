"""Parquet files of results: a row per image, in the order of the input."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusioner import __version__
from fusioner.errors import FusionerError
from fusioner.formats import found_segments
from fusioner.io import atomic_write
from fusioner.segmentation import Segmentation

_BOX = pa.list_(pa.int32(), 4)
_SEGMENT = pa.struct({"label": pa.string(), "area": pa.int64(), "score": pa.float32(), "box": _BOX, "rle": pa.string()})
SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        ("container", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("segments", pa.list_(_SEGMENT)),
        ("mask", pa.string()),
        ("error", pa.string()),
    ]
)
"""index: place in the input; image: name; container: its Parquet file or archive; segments: the labels found, largest
first, with pixels, mean probability, box (x y width height) and compressed run lengths (COCO) of the mask; mask: path
of the PNG, relative to OUT; error: why there is no result."""


def result_row(index: int, name: str, container: str, result: Segmentation, mask: str | None) -> dict[str, Any]:
    """Return the row of a segmented image."""
    segments = [
        {
            "label": segment.label,
            "area": segment.pixels,
            "score": result.scores[segment.label],
            "box": list(segment.box),
            "rle": segment.rle["counts"],
        }
        for segment in found_segments(result)
    ]
    size = {"width": result.width, "height": result.height}
    return _image_row(index, name, container) | size | {"segments": segments, "mask": mask}


def error_row(index: int, name: str, container: str, error: Exception) -> dict[str, Any]:
    """Return the row of an image that could not be segmented."""
    message = str(error) if isinstance(error, FusionerError) else f"{type(error).__name__}: {error}"
    return _image_row(index, name, container) | {"error": _valid_utf8(message)}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Write a file of results atomically; FusionerError when it cannot be written."""
    schema = SCHEMA.with_metadata({"fusioner": json.dumps({"version": __version__, **metadata})})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _image_row(index: int, name: str, container: str) -> dict[str, Any]:
    return {"index": index, "image": _valid_utf8(name), "container": container or None}


def _valid_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names may hold any bytes
