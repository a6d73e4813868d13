"""`fusioner data`: check a data set, draw a contact sheet, prepare masks from annotation files."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from fusioner.cli.options import Dataset, MaskValues, Root
from fusioner.data.annotation_formats import read_annotations
from fusioner.data.base import SegmentationData, present_pairs
from fusioner.data.check import DatasetReport, check_dataset, contact_sheet
from fusioner.data.folds import FOLD_DATASETS, FOLDS, val_pairs
from fusioner.data.masks import parse_mask_values
from fusioner.data.prepare import prepare_coco, prepare_folder
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.evaluation.report import Table
from fusioner.progress import progress
from fusioner.visualization import save_marked

Split = Annotated[str | None, Parameter(help="train, val ... as the data set names them; default: every image.")]

app = App(name="data", help="Inspect a data set: count and check it, draw a contact sheet, prepare masks.")
prepare = App(name="prepare", help="Make masks from the annotation files of COCO or of an annotation tool.")
app.command(prepare)


@app.command
def check(name: Dataset, /, *, root: Root, split: Split = None, mask_values: MaskValues = "") -> None:
    """Read every image and mask once, count classes, and name every file that cannot be used.

    The exit code is 2 if a file is broken: unreadable, image and mask of different sizes, a value outside the classes.
    Images without masks and pairs missing from the published lists are notes.

        fusioner data check pascal --root data/pascal --split val
        fusioner data check folder --root my/data
    """
    data = open_dataset(name, root, split, mask_values)
    with progress() as track:
        report = check_dataset(data, track)
    console = Console()
    console.print(_class_table(data, report).to_rich())
    if split != "train" and data.name in FOLD_DATASETS:
        console.print(_coverage_table(data).to_rich())
    notes = [f"note: {note}" for note in (*data.problems, *report.warnings(data))]
    for line in (*notes, *(f"broken: {error}" for error in report.broken)):
        print(line)
    if report.broken:
        raise FusionerError(f"{len(report.broken)} of {len(data.items)} images of {root} cannot be used (named above)")


@app.command
def show(
    name: Dataset,
    /,
    *,
    root: Root,
    out: Annotated[Path, Parameter(help="Image to write (.png or .jpg).")],
    split: Split = None,
    count: Annotated[int, Parameter(help="Number of images.")] = 12,
    columns: Annotated[int, Parameter(help="Images per row.")] = 4,
    mask_values: MaskValues = "",
) -> None:
    """Write a contact sheet of a data set.

    It shows evenly spaced images under their masks, with the names of the classes and their coverage.

        fusioner data show pascal --root data/pascal --out sheet.png
    """
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise FusionerError(f"--out must end in .png or .jpg, not {out.name!r}")
    sheet = contact_sheet(open_dataset(name, root, split, mask_values), count, columns)
    save_marked(sheet, out)
    print(f"wrote {out}")


@prepare.command(name="coco")
def coco_command(
    *,
    instances: Annotated[Path, Parameter(help="instances_train2014.json or instances_val2014.json.")],
    root: Annotated[Path, Parameter(help="Folder of the data set, with train2014 and val2014.")],
) -> None:
    """Paint the masks of COCO-20i from COCO's instances file.

    Writes ROOT/annotation/train2014/IMAGE.png (or val2014) for every image of the file: 0 is background, 1..80 are
    COCO's categories in order; small objects cover large ones, and crowd regions are ignored (255). Existing masks are
    kept, so an interrupted run can be continued.

        fusioner data prepare coco --instances annotations/instances_train2014.json --root data/coco
        fusioner data prepare coco --instances annotations/instances_val2014.json --root data/coco
    """
    with progress() as track:
        written, existing = prepare_coco(instances, root, track)
    print(f"wrote {written} masks to {root / 'annotation'}" + (f", {existing} existed" if existing else ""))


@prepare.command(name="folder")
def folder_command(
    source: Annotated[
        Path,
        Parameter(
            help="coco: the JSON file; labelme: the folder of JSON files; cvat: the XML file (CVAT for images 1.1) or "
            "the folder of a Segmentation mask 1.1 export; supervisely: the project's folder; label-studio: the JSON "
            "export; yolo: the folder of data.yaml and labels; voc: the folder of JPEGImages and SegmentationClass."
        ),
    ],
    /,
    *,
    source_format: Annotated[
        Literal["coco", "labelme", "cvat", "supervisely", "label-studio", "yolo", "voc"],
        Parameter(name="--from", help="Format of the annotations."),
    ],
    root: Annotated[Path, Parameter(help="Folder to write.")],
    images: Annotated[Path | None, Parameter(help="Folder of the images. Default: where the format has them.")] = None,
    copy: Annotated[bool, Parameter(help="Copy the images instead of linking to them.")] = False,
    skip_missing: Annotated[bool, Parameter(help="Leave out images that are not found.")] = False,
    mask_values: MaskValues = "",
) -> None:
    """Convert the annotations of another tool to a folder that data, train and evaluate read as `folder`.

    Writes ROOT/images (links to the image files), ROOT/masks and ROOT/classes.txt. Classes called background become
    value 0; COCO's crowds and labels called ignore are excluded from training and scores.

        fusioner data prepare folder instances.json --from coco --root my_data
        fusioner data prepare folder labelme_files --from labelme --root my_data --copy
        fusioner data prepare folder annotations.xml --from cvat --images photos --root my_data
        fusioner data prepare folder my_project --from supervisely --root my_data
        fusioner data prepare folder my_masks --from voc --root my_data --mask-values 255=1
    """
    if not source.exists():
        raise FusionerError(f"there is no {source}")
    project = read_annotations(source_format, source, images, skip_missing, parse_mask_values(mask_values))
    with progress() as track:
        prepare_folder(project, root, copy, track)
    for note in project.notes:
        print(f"note: {note}")
    if not project.painted:
        raise FusionerError(f"no shape of {source} could be painted: the masks in {root / 'masks'} are all background")
    print(f"wrote {len(project.images)} images with masks of {len(project.classes)} classes to {root}")


def _class_table(data: SegmentationData, report: DatasetReport) -> Table:
    values = {class_id: value for value, class_id in data.value_to_class.items()}
    present, total = [i for i in data.class_ids if report.images[i]], max(report.pixels.total(), 1)
    percent = {i: f"{100 * report.pixels[i] / total:.2f}" for i in (0, data.ignore, *present)}
    rows = [(str(values[i]), data.classes[i], str(report.images[i]), percent[i]) for i in present]
    if not data.ignore_unlabeled:
        rows.append(("0", data.classes[0], "", percent[0]))
    rows.append(("", "ignored", "", percent[data.ignore]))
    title = f"{data.name}: {report.readable} images, {len(present)} classes"
    return Table(("id", "class", "images", "pixels %"), rows, title, text_columns=(1,))


def _coverage_table(data: SegmentationData) -> Table:
    rows = []
    for fold in FOLDS:
        pairs = val_pairs(data.name, fold)
        listed, present = len(pairs), len(present_pairs(pairs, data))
        rows.append((str(fold), str(listed), str(present), str(listed - present)))
    return Table(("fold", "listed", "present", "missing"), rows, "published val pairs", text_columns=())
