"""The state of a run on disk, from which it goes on to the same weights: RUN/resume.pt, and the log beside it.

Random numbers need no place in it: every draw is seeded by the run's seed and the step it belongs to.
"""

import json
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fusioner.errors import FusionerError
from fusioner.io import atomic_write, cannot_write

RESUME, LAST, BEST, LOG = "resume.pt", "last.safetensors", "best.safetensors", "metrics.jsonl"
FORMAT = "fusioner-training-1"


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write RUN/resume.pt, whole or not at all; FusionerError when the system refuses (no space left, say)."""
    with atomic_write(out / RESUME) as beside:
        torch.save({"format": FORMAT, **state}, beside)


def read_state(out: Path, device: torch.device) -> dict[str, Any]:
    """Read RUN/resume.pt, tensors and plain values only.

    Raises:
        FusionerError: the file is damaged or something else.
    """
    path = out / RESUME
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FusionerError(f"{path} is damaged and cannot be resumed from: start anew in another --out") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FusionerError(f"{path} is not a run's state of this version of fusioner")
    return state


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    """Refuse to go on with other settings, data or encoders than a run began with; names what differs.

    Both hold plain values by name; a nested mapping's names are compared one by one.
    """
    for name, value in now.items():
        before = saved.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            check_same(before, value, out)
        elif before != value:
            shown = f" ({before} then, {value} now)" if len(f"{before}{value}") < 60 else ""
            raise FusionerError(
                f"cannot resume {out}: {name.replace('_', ' ')} differs from the run's own{shown}; repeat its command "
                "with --resume, or choose another --out"
            )


class Log:
    """metrics.jsonl: one JSON object a line, each with its `step`; written through at once."""

    def __init__(self, out: Path, start: int) -> None:
        """Keeps the lines of steps before `start`, drops the others: they are about to be made again."""
        self.path = out / LOG
        kept = [line for line in self._lines() if line["step"] < start] if start else []
        with atomic_write(self.path) as beside:
            beside.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def add(self, step: int, **values: float) -> None:
        """Append a line; FusionerError when the system refuses."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **rounded}) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        if self.path.is_file():
            for text in self.path.read_text("utf-8", errors="replace").splitlines():
                with suppress(ValueError):  # a run killed while writing leaves half a line
                    lines.append(json.loads(text))
        return lines
