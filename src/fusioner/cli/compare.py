"""`fusioner compare`: do two evaluations differ by more than chance?"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fusioner.evaluation.compare import Comparison


def compare(run_a: Path, run_b: Path, /, *, out: Path | None = None, draws: int = 2000, seed: int = 0) -> None:
    """Compare two folders of `fusioner evaluate`, image by image: B minus A, its 95 % interval, and a p-value.

    Both runs answer the same images, so their difference is known far better than either figure: two overlapping
    intervals may still differ surely. The interval is the paired bootstrap's; p is the chance of a difference as
    large if the two were equally good (approximate randomisation), for classes with Holm's correction.

        fusioner compare report_early report_late
        fusioner compare report_a report_b --out comparison

    Parameters
    ----------
    run_a
        Folder of an evaluation (its --out).
    run_b
        Another, of the same data set and folds.
    out
        Folder for compare.json, compare.md and compare.html (a picture of all differences).
    draws
        Samples of the bootstrap and of the randomisation.
    seed
        Of both.
    """
    from rich.console import Console

    from fusioner.errors import FusionerError
    from fusioner.evaluation.compare import compare as test
    from fusioner.evaluation.compare_report import write_comparison
    from fusioner.evaluation.store import read_evidence
    from fusioner.io import writable_folder

    if draws < 1:
        raise FusionerError(f"--draws must be at least 1, not {draws}")
    a, b = read_evidence(run_a), read_evidence(run_b)
    if out is not None:
        writable_folder(out)
    console = Console()
    with console.status("comparing"):
        found = test(a, b, draws, seed)
    console.print(_tables(found, run_a, run_b))
    for path in [] if out is None else write_comparison(out, found, str(run_a), str(run_b)):
        console.print(f"wrote {path}", soft_wrap=True)


def _tables(found: "Comparison", a: Path, b: Path) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table

    from fusioner.evaluation.compare_report import HEAD, NOT_SURE, class_rows, figure_rows, heading, legend

    tables = []
    for title, rows in ((heading(found), figure_rows(found)), ("classes", class_rows(found))):
        table = Table(title=title, title_justify="left", title_style="bold")
        for i, head in enumerate(HEAD):
            table.add_column(head, justify="left" if i in (0, len(HEAD) - 1) else "right", no_wrap=i > 0)
        for row in rows:
            table.add_row(*row, style="bold" if row[-1] != NOT_SURE else "")
        tables.append(table)
    return Group(*tables, *legend(str(a), str(b)), *(f"note: {note}" for note in found.notes))
