"""The benchmarks of open-vocabulary segmentation in their official directory trees: a table and one loader.

Class names are in `names/`, one class a line in the benchmark's order: the name and, after a tab, its prompt if that
differs. Unlabeled pixels are ignored; PAS-20b, PAS-21 and COCO-Object have a background, which their mIoU includes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

from fusioner.data.base import Item, SegmentationData
from fusioner.data.coco import COCO_CLASSES
from fusioner.data.pascal import pascal
from fusioner.data.paths import check_split, find_folder, no_images, pair_files, pair_listed, read_lines

STUFF_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Values of COCO's thing ids without annotations in COCO-Stuff's masks (value = COCO's id - 1)."""
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""labelIds of the 19 evaluated classes in the order of their train ids."""
_STUFF_IDS = tuple(i for i in range(182) if i not in STUFF_GAPS)


@dataclass(frozen=True)
class Benchmark:
    """Files and mask values of a benchmark.

    Attributes:
        tree: the expected directory tree, for error messages.
        images, masks: candidate folders; `{}` stands for the tree's name of the split.
        classes: name of a list in `names/`, or the class names.
        values: mask value -> class id (0 background, None ignored); empty: the value is the id.
        splits: name of a split -> its name in the tree.
        endings: suffixes after the id in the file names of images and masks.
        listed: text file with the ids of a split, if not all masks of a folder belong to it.
        background: id 0 is background and part of the mIoU; otherwise it is unlabeled and ignored.
    """

    tree: str
    images: tuple[str, ...]
    masks: tuple[str, ...]
    classes: str | tuple[str, ...]
    values: Mapping[int, int | None]
    splits: Mapping[str, str]
    endings: tuple[str, str] = (".jpg", ".png")
    listed: str | None = None
    background: bool = False


def _counted(ids: tuple[int, ...] | range, ignored: tuple[int, ...]) -> dict[int, int | None]:
    """Map values to the classes 1, 2, ... in this order, or to None if they are ignored."""
    return {**dict.fromkeys(ignored), **{value: i for i, value in enumerate(ids, start=1)}}


_COCO_STUFF = Benchmark(
    tree="""\
    images/{train2017,val2017}/000000000139.jpg ...
    annotations/{train2017,val2017}/000000000139.png ...   (stuffthingmaps: 0..181 with gaps, 255 = unlabeled)""",
    images=("images/{}", "coco_stuff164k/images/{}", "{}"),
    masks=("annotations/{}", "coco_stuff164k/annotations/{}", "stuffthingmaps_trainval2017/{}"),
    classes="stuff171",
    values=_counted(_STUFF_IDS, ignored=(255,)),
    splits={"train": "train2017", "val": "val2017"},
)

SPECS: dict[str, Benchmark] = {
    "ade150": Benchmark(
        tree="""\
    ADEChallengeData2016/images/{training,validation}/ADE_val_00000001.jpg ...
    ADEChallengeData2016/annotations/{training,validation}/ADE_val_00000001.png ...   (0 = other, 1..150)""",
        images=("ADEChallengeData2016/images/{}", "images/{}"),
        masks=("ADEChallengeData2016/annotations/{}", "annotations/{}"),
        classes="ade150",
        values={},
        splits={"train": "training", "val": "validation"},
    ),
    "ade847": Benchmark(
        tree="""\
    ADE20K_2021_17_01/images_detectron2/{training,validation}/ADE_val_00000001.jpg ...
    ADE20K_2021_17_01/annotations_detectron2/{training,validation}/ADE_val_00000001.tif ...
        (0..846, 65535 = ignore: what MaskFormer's prepare_ade20k_full_sem_seg.py writes)""",
        images=("ADE20K_2021_17_01/images_detectron2/{}", "images_detectron2/{}"),
        masks=("ADE20K_2021_17_01/annotations_detectron2/{}", "annotations_detectron2/{}"),
        classes="ade847",
        values=_counted(range(847), ignored=(65535,)),
        splits={"train": "training", "val": "validation"},
        endings=(".jpg", ".tif"),
    ),
    "context59": Benchmark(
        tree="""\
    VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg ...
    VOCdevkit/VOC2010/SegmentationClassContext/2008_000002.png ...   (0 = other, 1..59)
    VOCdevkit/VOC2010/ImageSets/SegmentationContext/{train,val}.txt""",
        images=("VOCdevkit/VOC2010/JPEGImages", "VOC2010/JPEGImages", "JPEGImages"),
        masks=tuple(f"{top}SegmentationClassContext" for top in ("VOCdevkit/VOC2010/", "VOC2010/", "")),
        classes="context59",
        values={},
        splits={"train": "train", "val": "val"},
        listed="ImageSets/SegmentationContext/{}.txt",
    ),
    "context459": Benchmark(
        tree="""\
    VOCdevkit/VOC2010/JPEGImages/2008_000002.jpg ...
    VOCdevkit/VOC2010/annotations_detectron2/pc459_{train,val}/2008_000002.tif ...
        (LabelMap of the .mat files less one: 0..458, 459 or 65535 = ignore)""",
        images=("VOCdevkit/VOC2010/JPEGImages", "VOC2010/JPEGImages", "JPEGImages"),
        masks=tuple(f"{top}annotations_detectron2/pc459_{{}}" for top in ("VOCdevkit/VOC2010/", "VOC2010/", "")),
        classes="context459",
        values=_counted(range(459), ignored=(459, 65535)),
        splits={"train": "train", "val": "val"},
        endings=(".jpg", ".tif"),
    ),
    "coco-stuff": _COCO_STUFF,
    "coco-object": replace(
        _COCO_STUFF,
        classes=COCO_CLASSES[1:],
        values=dict.fromkeys((*range(91, 182), 255), 0) | _counted(tuple(i for i in _STUFF_IDS if i < 91), ignored=()),
        background=True,
    ),
    "cityscapes": Benchmark(
        tree="""\
    leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png ...
    gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png ...   (0..33, of which 19 are evaluated)""",
        images=("leftImg8bit/{}",),
        masks=("gtFine/{}",),
        classes="cityscapes",
        values=_counted(CITYSCAPES_IDS, ignored=(*(i for i in range(34) if i not in CITYSCAPES_IDS), 255)),
        splits={"train": "train", "val": "val"},
        endings=("_leftImg8bit.png", "_gtFine_labelIds.png"),
    ),
    "camvid": Benchmark(
        tree="""\
    {train,val,test}/0001TP_008550.png ...
    {train,val,test}annot/0001TP_008550.png ...   (SegNet's eleven classes: 0..10, 11 = unlabelled)""",
        images=("{}", "CamVid/{}"),
        masks=("{}annot", "CamVid/{}annot"),
        classes="camvid",
        values=_counted(range(11), ignored=(11,)),
        splits={"train": "train", "val": "val", "test": "test"},
        endings=(".png", ".png"),
    ),
}


def open_benchmark(name: str, root: Path, split: str | None = None) -> SegmentationData:
    """Open a benchmark of `SPECS` under `root`; split None takes all splits on disk.

    Raises:
        FusionerError: a missing folder or list (with the expected tree), an unknown split, or no usable image.
    """
    spec, root, problems = SPECS[name], Path(root), list[str]()
    check_split(name, split, spec.splits)
    on_disk = [
        part for part, folder in spec.splits.items() if any((root / m.format(folder)).is_dir() for m in spec.masks)
    ]
    parts = [split] if split else on_disk or ["val"]
    items = [item for part in parts for item in _items(spec, root, part, problems)]
    if not items:
        raise no_images(split, root, spec.tree)
    classes, prompts = read_names(spec.classes) if isinstance(spec.classes, str) else (spec.classes, spec.classes)
    first = "background" if spec.background else "unlabeled"
    return SegmentationData(
        name,
        (first, *classes),
        items,
        ignore_unlabeled=not spec.background,
        prompts=(first, *prompts),
        mask_values=spec.values,
        include_background=spec.background,
        problems=problems,
    )


def read_names(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names and prompts of a list in `names/`."""
    lines = (files("fusioner.data") / "names" / f"{name}.txt").read_text("utf-8").splitlines()
    return tuple(line.split("\t")[0] for line in lines), tuple(line.split("\t")[-1] for line in lines)


def pas20(root: Path, split: str | None = None) -> SegmentationData:
    """Open PASCAL VOC with its 20 classes against each other; its background is ignored."""
    return replace(pascal(root, split), name="pas20", ignore_unlabeled=True)


def pas20b(root: Path, split: str | None = None) -> SegmentationData:
    """Open PASCAL VOC with PASCAL-Context's 39 other classes as background prompts (as in OpenSeg)."""
    data = pascal(root, split)
    taken = {*data.prompts, "table"}  # VOC's dining table
    others = tuple(word for word in read_names("context59")[1] if word not in taken)
    return replace(data, name="pas20b", background_prompts=others, include_background=True)


def pas21(root: Path, split: str | None = None) -> SegmentationData:
    """Open PASCAL VOC with the background (no class above the threshold) included in the mean IoU."""
    return replace(pascal(root, split), name="pas21", include_background=True)


BENCHMARKS: dict[str, Callable[..., SegmentationData]] = {
    **{name: partial(open_benchmark, name) for name in SPECS},
    "pas20": pas20,
    "pas20b": pas20b,
    "pas21": pas21,
}


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
