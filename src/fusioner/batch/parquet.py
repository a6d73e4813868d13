"""Results as Parquet: a row an image, in the order of the input."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fusioner import __version__
from fusioner.formats import found_segments
from fusioner.io import atomic_write
from fusioner.segmentation import Segmentation

_SEGMENT = pa.struct(
    [
        ("label", pa.string()),
        ("area", pa.int64()),
        ("score", pa.float32()),
        ("box", pa.list_(pa.int32(), 4)),
        ("rle", pa.string()),
    ]
)
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
"""index: place in the input; image: its name; container: Parquet file or archive it came from; segments: what was
found, the largest first: pixels, mean probability, box (x y width height), COCO's compressed run lengths for a mask of
[height, width]; mask: the PNG, relative to OUT; error: why there is no result."""


def good_row(index: int, name: str, container: str, result: Segmentation, mask: str | None) -> dict[str, Any]:
    """The row of an image that was segmented."""
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
    return _named(index, name, container) | size | {"segments": segments, "mask": mask}


def error_row(index: int, name: str, container: str, error: str) -> dict[str, Any]:
    """The row of an image that could not be."""
    return _named(index, name, container) | {"error": _plain(error)}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write a file of results, whole or not at all; FusionerError when the system refuses."""
    schema = SCHEMA.with_metadata({"fusioner": json.dumps({"version": __version__, **about})})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    with atomic_write(path) as beside:
        pq.write_table(table, beside, compression="zstd")


def _named(index: int, name: str, container: str) -> dict[str, Any]:
    return {"index": index, "image": _plain(name), "container": container or None}


def _plain(text: str) -> str:
    """Valid UTF-8: a file's name may be anything."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
