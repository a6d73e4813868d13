"""The table of a run, as CSV: a row for every picture and label, and one for every failure."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusioner import formats
from fusioner.errors import FusionerError
from fusioner.io import atomic_write

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation

COLUMNS: tuple[str, ...] = ("picture", "frame", "label", "found", "pixels", "coverage", "score", "box", "error")


class Summary:
    """Rows in the order of their pictures, whichever order they come in, from whichever thread."""

    def __init__(self, path: Path) -> None:
        """FusionerError when the name does not end in .csv."""
        if path.suffix.lower() != ".csv":
            raise FusionerError(f"a summary's name ends in .csv, not as {path.name!r}")
        self.paths = [path]
        self._rows: dict[int, list[dict[str, Any]]] = {}

    def add(self, number: int, picture: str, frame: int | None, segments: Iterable[Mapping[str, Any]]) -> None:
        """Picture `number` of the run was segmented; `segments` as in the JSON of a result."""
        self._rows[number] = [
            {name: segment[name] for name in ("label", "pixels", "coverage", "score")}
            | {"picture": picture, "frame": frame, "found": "true" if segment["pixels"] else "false"}
            | {"box": " ".join(map(str, segment["box"])) if segment["pixels"] else ""}
            for segment in segments
        ]

    def fail(self, number: int, picture: str, frame: int | None, error: object) -> None:
        """Picture `number` of the run has no result to tell of."""
        self._rows[number] = [{"picture": picture, "frame": frame, "error": error}]

    def write(self) -> None:
        """Write all rows so far; FusionerError when that fails."""
        with (
            atomic_write(self.paths[0]) as beside,
            beside.open("w", encoding="utf-8", errors="replace", newline="") as file,
        ):
            table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
            table.writeheader()
            for number in sorted(self._rows):
                table.writerows(self._rows[number])


def segments(result: "Segmentation") -> list[dict[str, Any]]:
    """What `Summary.add` wants to know of a result."""
    return [
        {
            "label": segment.label,
            "pixels": segment.pixels,
            "coverage": segment.coverage,
            "score": segment.score,
            "box": segment.box,
        }
        for segment in formats.segments(result)
    ]
