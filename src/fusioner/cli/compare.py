"""`fusioner compare`: test whether two evaluations differ by more than chance."""

from pathlib import Path

from rich.console import Console

from fusioner.cli.options import Positive
from fusioner.evaluation.compare import compare as compare_runs
from fusioner.evaluation.compare import terminal, write_comparison
from fusioner.evaluation.results import load_counts
from fusioner.io import writable_folder


def compare(
    run_a: Path, run_b: Path, /, *, out: Path | None = None, n_resamples: Positive = 2000, seed: int = 0
) -> None:
    """Compare two evaluations image by image: B minus A, its 95 % interval, and a p-value.

    Both runs evaluate the same images, so their difference is more precise than either value: overlapping intervals may
    still differ significantly. The interval is a paired bootstrap over images; p is the probability of a difference as
    large if both runs were equally good (approximate randomisation), Holm-adjusted over classes.

        fusioner compare report_early report_late
        fusioner compare report_a report_b --out comparison

    Args:
        run_a: Folder of an evaluation (its --out).
        run_b: Folder of another evaluation of the same data set and folds.
        out: Folder for compare.json, compare.md and compare.html (with a plot of all differences). Default: none.
        n_resamples: Samples of the bootstrap and of the randomisation.
        seed: Random seed of both.
    """
    a, b = load_counts(run_a), load_counts(run_b)
    if out is not None:
        writable_folder(out)
    console = Console()
    with console.status("comparing"):
        found = compare_runs(a, b, n_resamples, seed)
    console.print(terminal(found))
    for path in [] if out is None else write_comparison(out, found):
        print(f"wrote {path}")
