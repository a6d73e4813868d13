"""Resumable state of a run, OUT/resume.pt, and its log, OUT/metrics.jsonl.

No random state is stored: every draw is seeded by the run's seed and its step.
"""

import json
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fusioner.errors import FusionerError
from fusioner.io import atomic_write, cannot_write, check_replaceable
from fusioner.training.config import LOG, RESUME

FORMAT = "fusioner-training-1"


def write_state(out: Path, state: Mapping[str, Any]) -> None:
    """Write OUT/resume.pt atomically; FusionerError if the system refuses (a full disk, say)."""
    with atomic_write(out / RESUME) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def read_state(out: Path, device: torch.device) -> dict[str, Any]:
    """Read OUT/resume.pt, tensors and plain values only."""
    path = out / RESUME
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FusionerError(f"{path} is corrupt and cannot be resumed from: start anew in another --out") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FusionerError(f"{path} is not the state of a training run of this version of fusioner")
    return state


class Log:
    """metrics.jsonl: one JSON object per line, each with its `step`, written immediately."""

    def __init__(self, out: Path, start: int) -> None:
        """Keep the lines of steps before `start` and drop the others, which are about to be repeated."""
        self.path, lines = out / LOG, []
        if start and self.path.is_file():
            for text in self.path.read_text("utf-8", errors="replace").splitlines():
                with suppress(ValueError):  # a killed run may leave half a line
                    lines.append(json.loads(text))
        check_replaceable(self.path, b'"step": ')
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines if line["step"] < start), "utf-8")

    def add(self, step: int, **values: float) -> None:
        """Append a line; FusionerError if the system refuses."""
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **rounded}) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error
