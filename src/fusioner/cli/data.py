"""`fusioner data`: what is in a data set, and what it looks like."""

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from fusioner.data.registry import DatasetName

if TYPE_CHECKING:
    from rich.table import Table

    from fusioner.data.base import SegmentationData
    from fusioner.data.check import DatasetReport

app = App(name="data", help="Look into a data set: count and check it, make a contact sheet, prepare masks.")
app.command("fusioner.cli.prepare:app", name="prepare", help="Make masks from the annotation files of other tools.")


@app.command
def check(name: DatasetName, /, *, root: Path, split: str | None = None) -> None:
    """Read every image and mask once; count classes, and name every file that cannot be used.

    Ends with exit code 2 when a file is broken: unreadable, mask and image of different sizes, a value outside the
    classes. Images without masks and pairs missing from the published lists are reported as notes.

        fusioner data check pascal --root data/pascal --split val
        fusioner data check folder --root my/data

    Parameters
    ----------
    name
        Which data set; docs/data.md tells what DIR holds for each.
    root
        Folder of the data set.
    split
        train, val ... as the set names them; default: every image.
    """
    from rich.console import Console

    from fusioner.cli.progress import progress
    from fusioner.data.check import check_dataset
    from fusioner.data.registry import open_dataset
    from fusioner.errors import FusionerError

    data = open_dataset(name, root, split)
    with progress() as track:
        checked = check_dataset(data, lambda items: track(items, "reading"))
    console = Console()
    console.print(_classes(data, checked))
    if split != "train" and (missing := _missing(data)):
        console.print(missing)
    for note in (*data.problems, *checked.warnings(data)):
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    for sentence in checked.broken:
        console.print(f"broken: {sentence}", soft_wrap=True, highlight=False, markup=False)
    if checked.broken:
        raise FusionerError(f"{len(checked.broken)} of {len(data.items)} images of {root} cannot be used (named above)")


@app.command
def show(
    name: DatasetName, /, *, root: Path, out: Path, split: str | None = None, count: int = 12, columns: int = 4
) -> None:
    """Write a contact sheet: images spread evenly over the set, under their masks, with names and coverage.

        fusioner data show pascal --root data/pascal --out sheet.png

    Parameters
    ----------
    name
        Which data set; docs/data.md tells what DIR holds for each.
    root
        Folder of the data set.
    out
        Picture to write (.png or .jpg).
    split
        train, val ... as the set names them; default: every image.
    count
        Number of images.
    columns
        Images a row.
    """
    from fusioner.data.contact_sheet import contact_sheet
    from fusioner.data.registry import open_dataset
    from fusioner.errors import FusionerError
    from fusioner.io import atomic_write

    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise FusionerError(f"--out must end in .png or .jpg, not {out.name!r}")
    sheet = contact_sheet(open_dataset(name, root, split), count, columns)
    with atomic_write(out) as beside:
        sheet.save(beside)
    print(f"wrote {out}")


def _classes(data: "SegmentationData", checked: "DatasetReport") -> "Table":
    from rich.table import Table

    total, values = max(checked.pixels, 1), {i: value for value, i in data.value_to_class.items()}
    table = Table(title=f"{data.name}: {checked.images} images, {len(checked.by_class)} classes", title_justify="left")
    for head in ("id", "class", "images", "pixels %"):
        table.add_column(head, justify="left" if head == "class" else "right")
    for i, (images, pixels) in checked.by_class.items():
        table.add_row(str(values[i]), data.classes[i], str(images), f"{100 * pixels / total:.2f}")
    if not data.ignore_unlabeled:
        table.add_row("0", data.classes[0], "", f"{100 * checked.background / total:.2f}")
    table.add_row("", "ignored", "", f"{100 * checked.ignored / total:.2f}")
    return table


def _missing(data: "SegmentationData") -> "Table | None":
    """How many of the published val pairs of each fold are on disk."""
    from rich.table import Table

    from fusioner.data.base import present_pairs
    from fusioner.data.folds import FOLD_DATASETS, FOLDS, fold_pairs

    if data.name not in FOLD_DATASETS:
        return None
    table = Table(title="published val pairs", title_justify="left")
    for head in ("fold", "listed", "present", "missing"):
        table.add_column(head, justify="right")
    for fold in FOLDS:
        _, missing = present_pairs(fold_pairs(data.name, fold, "val"), data)
        table.add_row(str(fold), *(str(n) for n in (missing.listed, missing.present, missing.listed - missing.present)))
    return table
