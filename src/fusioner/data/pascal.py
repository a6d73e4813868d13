"""PASCAL VOC 2012 with the SBD masks, in the tree that the PASCAL-5i papers share."""

from dataclasses import replace
from pathlib import Path

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import prompt_of
from fusioner.data.paths import files_by_stem, find_folder, read_lines, summarize
from fusioner.errors import FusionerError

PASCAL_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""VOC's own spelling; index = mask value, 255 in a mask = ignore."""

PASCAL_TO_COCO = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""What COCO calls PASCAL's classes, where it has other words."""

TREE = """\
    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg ...
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,train_aug}.txt   (optional)
    SegmentationClassAug/2007_000032.png ...   (indexed, 0..20, 255 = ignore)"""


def pascal(root: Path, split: str | None = None) -> SegmentationData:
    """PASCAL VOC 2012 under `root`.

    Args:
        root: holds `VOCdevkit/VOC2012/JPEGImages` (or `VOC2012/JPEGImages`) and `SegmentationClassAug`.
        split: "train", "val" or "train_aug" (train + SBD, without val); None: every image with a mask.

    Raises:
        FusionerError: a missing folder (named, with the expected tree), an unknown split, or no usable image.
    """
    root = Path(root)
    images = find_folder(root, ("VOCdevkit/VOC2012/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"), TREE)
    beside = images.parent.relative_to(root) / "SegmentationClassAug"
    masks = find_folder(root, ("SegmentationClassAug", str(beside)), TREE)
    pictures, labels = files_by_stem(images), files_by_stem(masks, (".png",))
    ids = _listed(images.parent / "ImageSets" / "Segmentation", split, labels)
    missing = [i for i in ids if i not in pictures or i not in labels]
    problems = [f"{len(missing)} listed images have no image or mask file: {summarize(missing)}"] if missing else []
    items = [Item(i, pictures[i], labels[i]) for i in ids if i in pictures and i in labels]
    if not items:
        raise FusionerError(f"no image of split {split or 'all'} with a mask under {root}; it must hold\n{TREE}")
    prompts = tuple(prompt_of(name) for name in PASCAL_CLASSES)
    return SegmentationData("pascal", PASCAL_CLASSES, items, prompts=prompts, problems=problems)


def coco_to_pascal(root: Path, split: str | None = None) -> SegmentationData:
    """The same set for models of COCO-20i: prompted in COCO's words; its folds hold what COCO's fold held back."""
    words = tuple(PASCAL_TO_COCO.get(name, name) for name in PASCAL_CLASSES)
    return replace(pascal(root, split), name="coco-to-pascal", prompts=words)


def _listed(folder: Path, split: str | None, masks: dict[str, Path]) -> list[str]:
    """Ids of a split: its text list, or for trees without lists what the packaged fold lists tell."""
    if split is None:
        return list(masks)
    if split not in ("train", "val", "train_aug"):
        raise FusionerError(f"pascal has no split {split!r}; choose train, val or train_aug")
    if (folder / f"{split}.txt").is_file():
        return read_lines(folder / f"{split}.txt")
    if split == "train":
        raise FusionerError(f"list {folder / 'train.txt'} is missing; use split train_aug, or put the list there")
    if split == "train_aug" and (folder / "val.txt").is_file():
        val = set(read_lines(folder / "val.txt"))
        return [i for i in masks if i not in val]
    from fusioner.data.folds import published_images

    listed = published_images("pascal", "val" if split == "val" else "train")
    return [i for i in masks if i in listed]
