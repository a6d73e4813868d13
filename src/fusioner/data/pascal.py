"""PASCAL VOC 2012 with the SBD masks, in the directory tree of the PASCAL-5i papers."""

from dataclasses import replace
from pathlib import Path

from fusioner.data.base import SegmentationData
from fusioner.data.classes import read_names
from fusioner.data.paths import check_split, files_by_stem, find_folder, no_images, pair_listed, read_lines
from fusioner.data.split_lists import published_pairs
from fusioner.errors import FusionerError

PASCAL_CLASSES, PASCAL_PROMPTS = read_names("pascal")
"""VOC's spelling; index = mask value, 255 in a mask = ignore."""

PASCAL_TO_COCO = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""COCO's names of PASCAL's classes where they differ."""

TREE = """\
    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg ...
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,train_aug}.txt   (optional)
    SegmentationClassAug/2007_000032.png ...   (indexed, 0..20, 255 = ignore)"""


def pascal(root: Path, split: str | None = None) -> SegmentationData:
    """Open PASCAL VOC 2012 under `root`.

    Args:
        root: holds `VOCdevkit/VOC2012/JPEGImages` (or `VOC2012/JPEGImages`) and `SegmentationClassAug`.
        split: "train", "val" or "train_aug" (train + SBD, without val); None: every image with a mask.

    Raises:
        FusionerError: a missing folder (with the expected tree), an unknown split, or no usable image.
    """
    root = Path(root)
    check_split("pascal", split, ("train", "val", "train_aug"))
    image_folder = find_folder(root, ("VOCdevkit/VOC2012/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"), TREE)
    beside = image_folder.parent.relative_to(root) / "SegmentationClassAug"
    masks = files_by_stem(find_folder(root, ("SegmentationClassAug", str(beside)), TREE), (".png",))
    ids = _split_ids(image_folder.parent / "ImageSets" / "Segmentation", split, list(masks))
    problems: list[str] = []
    items = pair_listed(ids, files_by_stem(image_folder), masks, split or "all splits", problems)
    if not items:
        raise no_images(split, root, TREE)
    return SegmentationData("pascal", PASCAL_CLASSES, items, prompts=PASCAL_PROMPTS, problems=problems)


def coco_to_pascal(root: Path, split: str | None = None) -> SegmentationData:
    """Open PASCAL VOC 2012 with COCO's class names as prompts, for models trained on a fold of COCO-20i."""
    prompts = tuple(PASCAL_TO_COCO.get(name, name) for name in PASCAL_CLASSES)
    return replace(pascal(root, split), name="coco-to-pascal", prompts=prompts)


def _split_ids(folder: Path, split: str | None, ids: list[str]) -> list[str]:
    """Ids of a split from its text list or, if there is none, from the packaged fold lists."""
    if split is None:
        return ids
    if (folder / f"{split}.txt").is_file():
        return read_lines(folder / f"{split}.txt")
    if split == "train":
        raise FusionerError(f"list {folder / 'train.txt'} is missing; use split train_aug, or put the list there")
    if split == "train_aug" and (folder / "val.txt").is_file():
        val = set(read_lines(folder / "val.txt"))
        return [i for i in ids if i not in val]
    listed = {image for image, _ in published_pairs("pascal", "val" if split == "val" else "train")}
    return [i for i in ids if i in listed]
