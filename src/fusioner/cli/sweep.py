"""`fusioner sweep`: encoders x methods x folds, trained and evaluated from one file."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from fusioner.errors import FusionerError
from fusioner.evaluation.report import Table
from fusioner.progress import format_duration, progress
from fusioner.sweep.plan import Sweep, read_sweep
from fusioner.sweep.run import claimed, estimate, folder_of, is_done, run
from fusioner.sweep.table import build, to_markdown, write


def sweep(file: Path, /, *, out: Path, jobs: int = 1, dry_run: bool = False) -> None:
    """Train and evaluate every combination listed in a TOML file, and tabulate the results as the paper's Table 1.

    Repeat the command after an interruption: finished cells are not repeated, others continue. Failed cells are
    reported and tried again next time; the exit code is then 1.

        fusioner sweep examples/table1-embedded.toml --out table1
        fusioner sweep examples/table1-embedded.toml --out table1 --dry-run

    Args:
        file: Combinations, training and evaluation options: see docs/sweep.md.
        out: Folder of the cells, the feature cache and table.md, table.html, table.json.
        jobs: Cells run in parallel; they share the processor's threads.
        dry_run: Only list the cells, their state and the estimated time.
    """
    if jobs < 1:
        raise FusionerError(f"--jobs is at least 1, not {jobs}")
    plan = read_sweep(file)
    if dry_run:
        _list_cells(plan, out, jobs)
        return
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    def render() -> None:
        write(build(plan, out), out)

    with claimed(plan, out), _exit_on_sigterm(), progress("cells") as bars:
        task = bars.task("sweep", len(plan.cells))
        failed = run(plan, out, jobs, say, lambda done, note: task(done, note=note), render)
        table = build(plan, out, failed)
        paths = write(table, out)
    print(to_markdown(table))
    for path in paths:
        print(f"wrote {path}")
    if failed:
        print(f"{len(failed)} of {len(plan.cells)} cells failed", file=sys.stderr)
        sys.exit(1)


def _list_cells(plan: Sweep, out: Path, jobs: int) -> None:
    rows, left = [], 0.0
    for cell in plan.cells:
        done = is_done(out, cell)
        state = "done" if done else "begun" if folder_of(out, cell).is_dir() else "to do"
        seconds = 0.0 if done else estimate(plan, out, cell)
        left += seconds
        fold = "all" if cell.fold is None else str(cell.fold)
        rows.append([*cell.row, fold, str(cell.seed), state, "" if done else format_duration(seconds)])
    head = ["image encoder", "text encoder", "method", "fold", "seed", "state", "about"]
    Console().print(Table(head, rows, f"{len(rows)} cells", text_columns=range(len(head))).to_rich())
    basis = "from finished cells" if any(is_done(out, cell) for cell in plan.cells) else "a rough guess"
    total = format_duration(left / min(jobs, len(plan.cells)))
    print(f"about {total} in all with --jobs {jobs}, {basis}, plus the feature cache")


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, so that running cells are terminated."""
    handler = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
