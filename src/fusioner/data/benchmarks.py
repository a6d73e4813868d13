"""Data sets in their official directory trees: PASCAL VOC, COCO, and the benchmarks of open-vocabulary segmentation.

The benchmarks are a table, benchmarks.toml, with one loader. Class names are in `names/`, one class a line in the
benchmark's order: the name and, after a tab, its prompt if that differs. Unlabeled pixels are ignored; PAS-20b, PAS-21,
Context-60 and COCO-Object have a background, which their mIoU includes.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import COCO_CLASSES, PASCAL_CLASSES, PASCAL_PROMPTS, PASCAL_TO_COCO, read_names
from fusioner.data.folds import published_pairs
from fusioner.data.paths import check_split, files_by_stem, find_folder, no_images, pair_files, pair_listed, read_lines
from fusioner.errors import FusionerError

_COCO_TREE = """\
    train2014/COCO_train2014_000000000009.jpg ...
    val2014/COCO_val2014_000000000042.jpg ...
    annotation/train2014/COCO_train2014_000000000009.png ...   (grey, 0 = background, 1..80)
    annotation/val2014/COCO_val2014_000000000042.png ..."""
_PASCAL_TREE = """\
    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg ...
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,train_aug}.txt   (optional)
    SegmentationClassAug/2007_000032.png ...   (indexed, 0..20, 255 = ignore)
    or VOCdevkit/VOC2012/SegmentationClass/2007_000032.png ...   (without the SBD masks)"""


@dataclass(frozen=True)
class Benchmark:
    """Files and mask values of a benchmark."""

    tree: str  # for error messages
    images: Sequence[str]  # candidate folders; {} stands for the tree's name of the split
    masks: Sequence[str]
    classes: str  # name of a list in `names/`
    splits: Mapping[str, str]  # name of a split -> its name in the tree
    class_values: str = ""  # mask values of the classes in their order, such as "0-10 12"; "": the value is the id
    ignored_values: str = ""
    background_values: str = ""  # of a background that is part of the mIoU; "": there is none, 0 is ignored
    endings: Sequence[str] = (".jpg", ".png")  # after the id in the file names of images and masks
    listed: str | None = None  # text file with the ids of a split, if not all masks of a folder belong to it


def _ranges(text: str) -> list[int]:
    bounds = (part.partition("-") for part in text.split())
    return [value for low, _, high in bounds for value in range(int(low), int(high or low) + 1)]


SPECS = {
    name: Benchmark(**entry)
    for name, entry in tomllib.loads((files("fusioner.data") / "benchmarks.toml").read_text("utf-8")).items()
}
SPECS["context60"] = replace(SPECS["context59"], class_values="1-59", background_values="0")


def open_benchmark(name: str, root: Path, split: str | None = None) -> SegmentationData:
    """Open a benchmark of `SPECS` under `root`; split None takes all splits on disk."""
    spec, root, problems = SPECS[name], Path(root), list[str]()
    check_split(name, split, spec.splits)
    on_disk = [name for name, part in spec.splits.items() if any((root / m.format(part)).is_dir() for m in spec.masks)]
    parts = [split] if split else on_disk or ["val"]
    items = [item for part in parts for item in _items(spec, root, part, problems)]
    if not items:
        raise no_images(split, root, spec.tree)
    classes, prompts = read_names(spec.classes)
    count = len(_ranges(spec.class_values)) or len(classes)
    background = bool(spec.background_values)
    first = "background" if background else "unlabeled"
    mask_values: dict[int, int | None] = {
        **dict.fromkeys(_ranges(spec.ignored_values)),
        **dict.fromkeys(_ranges(spec.background_values), 0),
        **{value: i for i, value in enumerate(_ranges(spec.class_values), start=1)},
    }
    return SegmentationData(
        name,
        (first, *classes[:count]),
        items,
        ignore_unlabeled=not background,
        prompts=(first, *prompts[:count]),
        mask_values=mask_values,
        include_background=background,
        problems=problems,
    )


def coco20i(root: Path, split: str | None = None) -> SegmentationData:
    """Open COCO 2014 with one painted mask per image: the split "train" or "val", or both (None).

    `root` holds `train2014`, `val2014` and `annotation/{train2014,val2014}` (or `annotations`).
    """
    root, problems = Path(root), list[str]()
    check_split("coco", split, ("train", "val"))
    items = []
    for part in ("train2014", "val2014") if split is None else (f"{split}2014",):
        images = files_by_stem(find_folder(root, (part,), _COCO_TREE))
        masks = files_by_stem(find_folder(root, (f"annotation/{part}", f"annotations/{part}"), _COCO_TREE), (".png",))
        items += pair_files(images, masks, part, problems)
    if not items:
        raise no_images(split, root, _COCO_TREE)
    return SegmentationData("coco", COCO_CLASSES, items, problems=problems)


def pascal(
    root: Path,
    split: str | None = None,
    name: str = "pascal",
    prompts: tuple[str, ...] = PASCAL_PROMPTS,
    **options: Any,
) -> SegmentationData:
    """Open PASCAL VOC 2012 with the SBD masks: "train", "val" or "train_aug" (train + SBD, without val), or all (None).

    `root` holds `VOCdevkit/VOC2012/JPEGImages` (or `VOC2012/JPEGImages`) and `SegmentationClassAug`, or VOC's own
    `SegmentationClass`. `options` are further attributes of the data set.
    """
    root = Path(root)
    check_split("pascal", split, ("train", "val", "train_aug"))
    image_folder = find_folder(root, ("VOCdevkit/VOC2012/JPEGImages", "VOC2012/JPEGImages", "JPEGImages"), _PASCAL_TREE)
    beside = image_folder.parent.relative_to(root)
    folders = ("SegmentationClassAug", str(beside / "SegmentationClassAug"), str(beside / "SegmentationClass"))
    masks = files_by_stem(find_folder(root, folders, _PASCAL_TREE), (".png",))
    ids = _split_ids(image_folder.parent / "ImageSets" / "Segmentation", split, list(masks))
    problems: list[str] = []
    items = pair_listed(ids, files_by_stem(image_folder), masks, split or "all splits", problems)
    if not items:
        raise no_images(split, root, _PASCAL_TREE)
    return SegmentationData(name, PASCAL_CLASSES, items, prompts=prompts, problems=problems, **options)


_TAKEN = {*PASCAL_PROMPTS, "table"}  # VOC's dining table
BENCHMARKS: dict[str, Callable[..., SegmentationData]] = {
    "pascal": pascal,
    "coco": coco20i,
    # COCO's names as prompts, for models trained on a fold of COCO-20i
    "coco-to-pascal": partial(
        pascal, name="coco-to-pascal", prompts=tuple(PASCAL_TO_COCO.get(name, name) for name in PASCAL_CLASSES)
    ),
    # the 20 classes against each other; the background is ignored
    "pas20": partial(pascal, name="pas20", ignore_unlabeled=True),
    # PASCAL-Context's 39 other classes as background prompts (as in OpenSeg)
    "pas20b": partial(
        pascal,
        name="pas20b",
        background_prompts=tuple(word for word in read_names("context59")[1] if word not in _TAKEN),
        include_background=True,
    ),
    # the background (no class above the threshold) included in the mean IoU
    "voc21": partial(pascal, name="voc21", include_background=True),
    **{name: partial(open_benchmark, name) for name in SPECS},
}
"""Benchmark -> its loader."""


def _items(spec: Benchmark, root: Path, split: str, problems: list[str]) -> list[Item]:
    part = spec.splits[split]
    image_folder, mask_folder = (
        find_folder(root, tuple(folder.format(part) for folder in folders), spec.tree)
        for folders in (spec.images, spec.masks)
    )
    images, masks = (_by_id(f, e) for f, e in zip((image_folder, mask_folder), spec.endings, strict=True))
    if spec.listed is not None:
        listed = read_lines(mask_folder.parent / spec.listed.format(part))
        return pair_listed(listed, images, masks, split, problems)
    if "{}" not in spec.images[0]:  # one folder holds the images of all splits
        return pair_listed(masks, images, masks, split, problems)
    return pair_files(images, masks, split, problems)


def _by_id(folder: Path, ending: str) -> dict[str, Path]:
    """Files in a folder and its subfolders with this name ending, by the name before it, sorted."""
    found = sorted(path for path in folder.rglob(f"*{ending}") if not path.name.startswith("."))
    return {path.name.removesuffix(ending): path for path in found}


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
