"""A user's own data: images/, masks/ with the same stems, and a file with the class names."""

from collections import Counter
from pathlib import Path, PureWindowsPath

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import UNLABELED_NAMES, prompt_of, read_class_colours, read_class_names
from fusioner.data.paths import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    NameIndex,
    files_by_stem,
    find_folder,
    no_images,
    pair_files,
    read_lines,
    summarize,
)
from fusioner.errors import FusionerError

TREE = """\
    images/NAME.jpg ...   (jpg, jpeg, png or webp)
    masks/NAME.png ...   (indexed or grey, pixel values are class ids, 255 = ignore)
    classes.txt   (line i names value i; or classes.json, classes.yaml)
    train.txt, val.txt   (optional: one NAME a line)"""


def folder(root: Path, split: str | None = None) -> SegmentationData:
    """Open a folder of images and masks under `root`.

    Class 0 is background if it is called background or has no name; its pixels are ignored if it is called null,
    unlabeled, unknown, ignore or void; with any other name it is an ordinary class, and all ids move up by one.

    Args:
        root: holds `images`, `masks` and `classes.txt` (or .json, .yaml).
        split: "train" or "val", as listed in `train.txt` / `val.txt`; without train.txt, "train" is everything that
            val.txt does not list. None: everything.
    """
    root, problems = Path(root), list[str]()
    images = files_by_stem(find_folder(root, ("images",), TREE), IMAGE_SUFFIXES)
    masks = files_by_stem(find_folder(root, ("masks",), TREE), MASK_SUFFIXES)
    names = read_class_names(root)
    items = _select(root, split, pair_files(images, masks, str(root), problems), problems)
    if not items:
        raise no_images(split, root, TREE)

    first = names.get(0, "background")
    classes = [first, *(names.get(i, "") for i in range(1, max(names) + 1))]
    unlabeled, mask_values = first.casefold() in UNLABELED_NAMES, {}
    if not unlabeled and first.casefold() != "background":  # an ordinary class
        mask_values = {i: i + 1 for i, name in enumerate(classes) if name}
        unlabeled, classes = True, ["unlabeled", *classes]
    prompts = [prompt_of(name) for name in classes]
    count = Counter(map(str.casefold, prompts))
    return SegmentationData(
        "folder",
        tuple(classes),
        items,
        ignore_unlabeled=unlabeled,
        # a class whose prompt would equal another one's keeps its full name
        prompts=tuple(p if count[p.casefold()] == 1 else name for p, name in zip(prompts, classes, strict=True)),
        mask_values=mask_values,
        colours=read_class_colours(root),
        problems=problems,
    )


def _select(root: Path, split: str | None, items: list[Item], problems: list[str]) -> list[Item]:
    """Items of a split, in the order of its list."""
    if split is None:
        return items
    path = root / f"{split}.txt"
    if not path.is_file():
        if split != "train":
            raise FusionerError(f"list {path} is missing: put the names of the split's images there, one a line")
        val = set(_listed(root / "val.txt", items)) if (root / "val.txt").is_file() else set()
        return [item for item in items if item.id not in val]
    listed, by_id = _listed(path, items), {item.id: item for item in items}
    if missing := [stem for stem in listed if stem not in by_id]:
        problems.append(f"{len(missing)} names of {path.name} have no image with a mask: {summarize(missing)}")
    return [by_id[stem] for stem in listed if stem in by_id]


def _listed(path: Path, items: list[Item]) -> list[str]:
    """Ids of a list without duplicates; extensions of images and parent folders are dropped."""
    index, stems = NameIndex(item.id for item in items), dict[str, None]()
    for line in read_lines(path):
        name = PureWindowsPath(line)
        stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
        stems[index.find(stem) or stem] = None
    return list(stems)
