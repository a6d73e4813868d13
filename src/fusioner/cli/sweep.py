"""`fusioner sweep`: encoders x methods x folds, trained and evaluated from one file."""

import signal
import sys
from pathlib import Path

from rich.console import Console

from fusioner.cli.options import Positive
from fusioner.evaluation.report import Table
from fusioner.progress import format_duration, progress
from fusioner.sweep.plan import Sweep, read_sweep
from fusioner.sweep.run import claimed, estimate, folder_of, is_done, run
from fusioner.sweep.table import build, to_markdown, write


def sweep(file: Path, /, *, out: Path, jobs: Positive = 1, dry_run: bool = False) -> None:
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
    plan = read_sweep(file)
    if dry_run:
        _list_cells(plan, out, jobs)
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # running cells are then terminated
    with claimed(plan, out), progress("cells") as bars:
        task = bars.task("sweep", len(plan.cells))
        failed = run(plan, out, jobs, bars.say, task, lambda: write(build(plan, out), out))
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
