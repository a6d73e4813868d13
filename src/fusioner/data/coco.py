"""COCO 2014 with one mask per image, in the directory tree of the COCO-20i papers."""

from pathlib import Path

from fusioner.data.base import SegmentationData
from fusioner.data.classes import read_names
from fusioner.data.paths import check_split, files_by_stem, find_folder, no_images, pair_files

COCO_CLASSES = ("background", *read_names("stuff171")[0][:80])
"""The 80 thing classes in COCO's order; index = mask value."""

TREE = """\
    train2014/COCO_train2014_000000000009.jpg ...
    val2014/COCO_val2014_000000000042.jpg ...
    annotation/train2014/COCO_train2014_000000000009.png ...   (grey, 0 = background, 1..80)
    annotation/val2014/COCO_val2014_000000000042.png ..."""


def coco20i(root: Path, split: str | None = None) -> SegmentationData:
    """Open COCO 2014 with one painted mask per image under `root`.

    Args:
        root: holds `train2014`, `val2014` and `annotation/{train2014,val2014}` (or `annotations`).
        split: "train" or "val"; None: both.

    Raises:
        FusionerError: a missing folder (with the expected tree), an unknown split, or no usable image.
    """
    root, problems = Path(root), list[str]()
    check_split("coco", split, ("train", "val"))
    items = []
    for part in ("train2014", "val2014") if split is None else (f"{split}2014",):
        images = files_by_stem(find_folder(root, (part,), TREE))
        masks = files_by_stem(find_folder(root, (f"annotation/{part}", f"annotations/{part}"), TREE), (".png",))
        items += pair_files(images, masks, part, problems)
    if not items:
        raise no_images(split, root, TREE)
    return SegmentationData("coco", COCO_CLASSES, items, problems=problems)
