"""Running a sweep's cells, some at a time, each in a process of its own that may fail without harm to the others."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fusioner.errors import FusionerError
from fusioner.io import FileLocks, atomic_write, writable_folder
from fusioner.sweep.cell import CELL, read_done
from fusioner.sweep.plan import Cell, Sweep, settings_toml
from fusioner.training.resume import LOG

SWEEP, CELLS, CACHE, OUTPUT = "sweep.json", "cells", "cache", "log.txt"
SECONDS = 0.1
"""Rough guess for an image and step of `small` at 336 px on two cores, where no cell is finished to tell better."""
_POLL = 1.0


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def close(self) -> None:
        """Once it has ended."""
        self.output.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def folder_of(out: Path, cell: Cell) -> Path:
    """Where a cell's run and report are."""
    return out / CELLS / cell.name


def is_done(out: Path, cell: Cell) -> bool:
    """Trained and evaluated."""
    return {"train", "evaluate"} <= set(read_done(folder_of(out, cell)))


def estimate(sweep: Sweep, out: Path, cell: Cell) -> float:
    """Seconds that a cell takes: as finished ones of its method took, else of any, else a rough guess."""
    done = [(one, sum(read_done(folder_of(out, one)).values())) for one in sweep.cells if is_done(out, one)]
    same = [seconds for one, seconds in done if one.method == cell.method] or [seconds for _, seconds in done]
    if same:
        return sorted(same)[len(same) // 2]
    config = sweep.config(cell)
    return 60 + SECONDS * config.optim.steps * config.optim.batch_size * (config.model.resolution / 336) ** 2


@contextmanager
def claimed(sweep: Sweep, out: Path) -> Iterator[None]:
    """`out` is this sweep's alone until it is left.

    Raises:
        FusionerError: another sweep is at work there, or cells of other settings are there.
    """
    with FileLocks(writable_folder(out) / ".lock") as locks:
        if not locks.acquire(0):
            raise FusionerError(f"another sweep is at work in {out}: wait for it to end, or choose another --out")
        file = out / SWEEP
        if file.is_file():
            _check_same(json.loads(file.read_text("utf-8")), sweep.identity(), out)
        with atomic_write(file) as beside:
            beside.write_text(json.dumps(sweep.identity(), indent=2) + "\n", "utf-8")
        yield


def run(
    sweep: Sweep,
    out: Path,
    jobs: int,
    say: Callable[[str], None],
    show: Callable[[float, str], None],
    finished: Callable[[], None],
) -> dict[Cell, str]:
    """Run every cell that is not done -> why those that failed did.

    Args:
        say: for a line when a cell ends; show: (cells done, with fractions, what is running) now and then.
        finished: called after each cell that succeeded.
    """
    waiting = [cell for cell in sweep.cells if not is_done(out, cell)]
    running: list[_Running] = []
    failed: dict[Cell, str] = {}
    done = len(sweep.cells) - len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(sweep, out, waiting.pop(0), jobs))
            with suppress(subprocess.TimeoutExpired):
                running[0].process.wait(_POLL)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.close()
                if one.process.returncode:
                    failed[one.cell] = _reason(folder_of(out, one.cell), one.process.returncode)
                    say(f"failed: {one.cell.title}: {failed[one.cell]}")
                else:
                    done += 1
                    say(f"done: {one.cell.title}: {_headline(folder_of(out, one.cell))}")
                    finished()
            parts = sum(_part(folder_of(out, one.cell), sweep.config(one.cell).optim.steps) for one in running)
            show(done + len(failed) + parts, ", ".join(one.cell.title for one in running))
    finally:
        for one in running:
            one.process.terminate()  # a training saves what it has
        for one in running:
            one.process.wait()
            one.close()
    return failed


def _start(sweep: Sweep, out: Path, cell: Cell, jobs: int) -> _Running:
    folder = writable_folder(folder_of(out, cell))
    with atomic_write(folder / "settings.toml") as temporary:
        temporary.write_text(settings_toml(sweep.settings | cell.settings()), "utf-8")
    content = {**cell.settings(), "fold": cell.fold, "commands": sweep.commands(cell, folder, out / CACHE)}
    with atomic_write(folder / CELL) as beside:
        beside.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "COLUMNS": "140"}
    output = (folder / OUTPUT).open("ab")
    command = [sys.executable, "-m", "fusioner.sweep.cell", str(folder)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C is the sweep's, which tells each cell once: a second signal would cut it off
    )
    return _Running(cell, process, output)


def _part(folder: Path, steps: int) -> float:
    """How much of a running cell is done, by the last line of its training's log."""
    if "train" in read_done(folder):
        return 0.9
    with suppress(OSError, ValueError, IndexError, KeyError):
        last = json.loads((folder / "run" / LOG).read_text("utf-8").splitlines()[-1])
        return 0.9 * min(1.0, last["step"] / max(1, steps))
    return 0.0


def _reason(folder: Path, code: int) -> str:
    lines = (folder / OUTPUT).read_text("utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    text = said[-1].removeprefix("error: ") if code == 2 and said else (lines or [""])[-1]
    return f"{text} (exit code {code}, see {folder / OUTPUT})"


def _headline(folder: Path) -> str:
    from fusioner.training.progress import clock

    found: dict[str, Any] = json.loads((folder / "report" / "metrics.json").read_text("utf-8"))
    shown = [f"{name} {found[name]:.1f}" for name in ("miou", "argmax_miou") if found.get(name) is not None]
    return ", ".join(shown) + f" in {clock(sum(read_done(folder).values()))}"


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> None:
    for part, new in now.items():
        old = before.get(part)
        if old == new:
            continue
        what = f"{part} was {old!r} and is {new!r}"
        if isinstance(old, dict) and isinstance(new, dict):
            name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
            what = f"{part}: {name} was {old.get(name)!r} and is {new.get(name)!r}"
        raise FusionerError(f"{out} holds a sweep of other settings ({what}): choose another --out")
