"""`fusioner sweep`: encoders x methods x folds, trained and evaluated from one file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusioner.sweep.plan import Sweep


def sweep(file: Path, /, *, out: Path, jobs: int = 1, dry_run: bool = False) -> None:
    """Train and evaluate every combination that a TOML file asks for, and lay the figures out as the paper's Table 1.

    Repeat the command after any interruption: what is finished is not done again, what had begun goes on. A cell that
    fails is reported and the others go on; the exit code is then 1, and the next time it is tried again.

        fusioner sweep examples/table1-embedded.toml --out table1
        fusioner sweep examples/table1-embedded.toml --out table1 --dry-run

    Parameters
    ----------
    file
        What to combine and how to train and evaluate it: see docs/sweep.md.
    out
        Folder of the cells, the feature cache and table.md, table.html, table.json.
    jobs
        Cells at a time; they share the processor's threads.
    dry_run
        Only list the cells, what is done of them, and about how long the others will take.
    """
    import sys

    from rich.console import Console

    from fusioner.cli.progress import progress
    from fusioner.errors import FusionerError
    from fusioner.sweep.plan import read_sweep
    from fusioner.sweep.run import claimed, run
    from fusioner.sweep.table import build, to_markdown, write

    if jobs < 1:
        raise FusionerError(f"--jobs is at least 1, not {jobs}")
    plan = read_sweep(file)
    if dry_run:
        _list(plan, out, jobs)
        return
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    def render() -> None:
        write(build(plan, out), out)

    with claimed(plan, out), _sigterm_ends(), progress("cells") as work:
        task = work.task("sweep", len(plan.cells))
        failed = run(plan, out, jobs, say, lambda done, note: task(done, note=note), render)
        table = build(plan, out, failed)
        paths = write(table, out)
    print(to_markdown(table))
    for path in paths:
        print(f"wrote {path}")
    if failed:
        print(f"{len(failed)} of {len(plan.cells)} cells failed", file=sys.stderr)
        sys.exit(1)


def _list(plan: "Sweep", out: Path, jobs: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from fusioner.sweep.run import estimate, folder_of, is_done
    from fusioner.training.progress import clock

    table, left = Table(title=f"{len(plan.cells)} cells", title_justify="left"), 0.0
    for head in ("image encoder", "text encoder", "method", "fold", "seed", "state", "about"):
        table.add_column(head)
    for cell in plan.cells:
        done = is_done(out, cell)
        state = "done" if done else "begun" if folder_of(out, cell).is_dir() else "to do"
        seconds = 0.0 if done else estimate(plan, out, cell)
        left += seconds
        fold = "all" if cell.fold is None else str(cell.fold)
        table.add_row(*cell.row, fold, str(cell.seed), state, "" if done else clock(seconds))
    Console().print(table)
    told = "as the finished cells took" if any(is_done(out, cell) for cell in plan.cells) else "a rough guess"
    print(
        f"about {clock(left / min(jobs, len(plan.cells)))} in all with --jobs {jobs}, {told}, beside the feature cache"
    )


@contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM ends the work as an exception does, so that the cells at work are told."""
    import signal
    import sys

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
