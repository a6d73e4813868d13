"""Run a sweep's cells, each in its own process, whose failure does not affect the others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fusioner.errors import FusionerError, first_difference
from fusioner.io import FileLocks, atomic_write, writable_folder
from fusioner.progress import format_duration
from fusioner.sweep.cell import CELL, read_done
from fusioner.sweep.plan import Cell, Sweep
from fusioner.training.config import LOG

SWEEP, CELLS, CACHE, OUTPUT = "sweep.json", "cells", "cache", "log.txt"
SECONDS = 0.1
"""Rough time per image and step of `small` at 336 px on two cores, used until a cell is finished."""
_POLL = 1.0


def folder_of(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell's run and report."""
    return out / CELLS / cell.name


def is_done(out: Path, cell: Cell) -> bool:
    """Return whether a cell is trained and evaluated."""
    return {"train", "evaluate"} <= set(read_done(folder_of(out, cell)))


def estimate(sweep: Sweep, out: Path, cell: Cell) -> float:
    """Estimate a cell's seconds by finished cells of its method, else of any method, else roughly."""
    done = [(other, sum(read_done(folder_of(out, other)).values())) for other in sweep.cells if is_done(out, other)]
    same = [seconds for other, seconds in done if other.method == cell.method] or [seconds for _, seconds in done]
    if same:
        return sorted(same)[len(same) // 2]
    config = sweep.config(cell)
    return 60 + SECONDS * config.optim.steps * config.optim.batch_size * (config.model.resolution / 336) ** 2


@contextmanager
def claimed(sweep: Sweep, out: Path) -> Iterator[None]:
    """Reserve `out` for this sweep while the context is open; FusionerError if it holds cells of other settings."""
    with FileLocks(writable_folder(out) / ".lock") as locks:
        if not locks.acquire(0):
            raise FusionerError(f"another sweep is at work in {out}: wait for it to end, or choose another --out")
        file = out / SWEEP
        before = json.loads(file.read_text("utf-8")) if file.is_file() else sweep.identity()
        if change := first_difference(before, sweep.identity()):
            raise FusionerError(f"{out} holds a sweep begun with other settings: {change}: choose another --out")
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(sweep.identity(), indent=2) + "\n", "utf-8")
        yield


def run(
    sweep: Sweep,
    out: Path,
    jobs: int,
    say: Callable[[str], object],
    show: Callable[..., object],
    finished: Callable[[], object],
) -> dict[Cell, str]:
    """Run every unfinished cell; return the reasons of those that failed.

    `say` is called with a line when a cell ends, `show` regularly as a `progress.Task`, and `finished` after each
    successful cell.
    """
    waiting = [cell for cell in sweep.cells if not is_done(out, cell)]
    running: dict[Cell, subprocess.Popen[bytes]] = {}
    failed: dict[Cell, str] = {}
    done = len(sweep.cells) - len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell] = _start(sweep, out, cell, jobs)
            with suppress(subprocess.TimeoutExpired):
                next(iter(running.values())).wait(_POLL)
            for cell in [cell for cell, process in running.items() if process.poll() is not None]:
                with running.pop(cell) as process:  # closes its pipe
                    code, folder = process.returncode, folder_of(out, cell)
                if code:
                    failed[cell] = _reason(folder, code)
                    say(f"failed: {cell.title}: {failed[cell]}")
                else:
                    done += 1
                    say(f"done: {cell.title}: {_headline(folder)}")
                    finished()
            parts = sum(_progress(folder_of(out, cell), sweep.config(cell).optim.steps) for cell in running)
            show(done + len(failed) + parts, note=", ".join(cell.title for cell in running))
    finally:
        for process in running.values():
            process.terminate()  # a training saves its state
        for process in running.values():
            with process:
                process.wait()  # before its pipe is closed, which ends it at once
    return failed


def _start(sweep: Sweep, out: Path, cell: Cell, jobs: int) -> subprocess.Popen[bytes]:
    folder = writable_folder(folder_of(out, cell))
    content = {**cell.settings(), "fold": cell.fold, "commands": sweep.commands(cell, folder, out / CACHE)}
    with atomic_write(folder / CELL) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // jobs)
    with (folder / OUTPUT).open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "fusioner.sweep.cell", str(folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "140"},
            start_new_session=True,  # Ctrl-C reaches the sweep only, which terminates each cell once
        )


def _progress(folder: Path, steps: int) -> float:
    """Return the finished share of a running cell, read from its training log."""
    if "train" in read_done(folder):
        return 0.9
    with suppress(OSError, ValueError, IndexError, KeyError):
        last = json.loads((folder / "run" / LOG).read_text("utf-8").splitlines()[-1])
        return 0.9 * min(1.0, last["step"] / max(1, steps))
    return 0.0


def _reason(folder: Path, code: int) -> str:
    lines = (folder / OUTPUT).read_text("utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    text = errors[-1].removeprefix("error: ") if code == 2 and errors else (lines or [""])[-1]
    return f"{text} (exit code {code}, see {folder / OUTPUT})"


def _headline(folder: Path) -> str:
    metrics: dict[str, Any] = json.loads((folder / "report" / "metrics.json").read_text("utf-8"))
    values = [f"{name} {metrics[name]:.1f}" for name in ("miou", "argmax_miou") if metrics.get(name) is not None]
    return ", ".join(values) + f" in {format_duration(sum(read_done(folder).values()))}"
