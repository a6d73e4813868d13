"""`fusioner data prepare`: masks out of annotation files."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

app = App(name="prepare", help="Make masks from annotation files: COCO's, or those of an annotation tool.")


@app.command
def coco(*, instances: Path, root: Path) -> None:
    """Paint the masks of COCO-20i from COCO's own instances file.

    Writes ROOT/annotation/train2014/IMAGE.png (or val2014) for every image of the file: 0 background, 1..80 in the
    order of COCO's categories; small objects lie on large ones, and crowd regions are ignored (255). What is there
    already stays, so a run that was stopped goes on where it was.

        fusioner data prepare coco --instances annotations/instances_train2014.json --root data/coco
        fusioner data prepare coco --instances annotations/instances_val2014.json --root data/coco

    Parameters
    ----------
    instances
        instances_train2014.json or instances_val2014.json.
    root
        Folder of the data set, which holds train2014 and val2014.
    """
    from fusioner.cli.progress import progress
    from fusioner.data.prepare import prepare_coco

    with progress() as track:
        written, there = prepare_coco(instances, root, lambda images: track(images, "painting"))
    print(f"wrote {written} masks to {root / 'annotation'}" + (f", {there} were there" if there else ""))


@app.command
def folder(
    source: Path,
    /,
    *,
    kind: Annotated[Literal["coco", "labelme", "cvat", "supervisely"], Parameter(name="--from")],
    root: Path,
    images: Path | None = None,
    copy: bool = False,
) -> None:
    """Turn the annotations of another tool into a folder that train, evaluate and data read as `folder`.

    Writes ROOT/images (links to the files where they are), ROOT/masks and ROOT/classes.txt. Classes called background
    become value 0; COCO's crowds and what is called ignore are left out of training and scores.

        fusioner data prepare folder instances.json --from coco --root my_data
        fusioner data prepare folder labelme_files --from labelme --root my_data --copy
        fusioner data prepare folder annotations.xml --from cvat --images photos --root my_data
        fusioner data prepare folder my_project --from supervisely --root my_data

    Parameters
    ----------
    source
        coco: the JSON file; labelme: the folder of JSON files; cvat: the XML file (CVAT for images 1.1) or the folder
        of a Segmentation mask 1.1 export; supervisely: the project's folder.
    kind
        Which tool wrote the annotations.
    root
        Folder to write.
    images
        Folder of the images, where they are not beside the annotations.
    copy
        Copy the images instead of linking to them.
    """
    from fusioner.cli.progress import progress
    from fusioner.data.annotation_formats import READERS
    from fusioner.data.prepare import prepare_folder
    from fusioner.errors import FusionerError

    if not source.exists():
        raise FusionerError(f"there is no {source}")
    project = READERS[kind](source, images)
    with progress() as track:
        prepare_folder(project, root, copy, lambda items: track(items, "converting"))
    for note in project.notes:
        print(f"note: {note}")
    print(f"wrote {len(project.images)} images with masks of {len(project.classes)} classes to {root}")
