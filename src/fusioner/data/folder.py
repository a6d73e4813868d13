"""A user's own data: images/, masks/ with the same stems, and a file with the class names."""

from collections import Counter
from pathlib import Path, PureWindowsPath

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import UNLABELED_NAMES, prompt_of, read_class_colours, read_class_names
from fusioner.data.paths import (
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
from fusioner.image import image_suffixes, left_out_error, unsupported_kind
from fusioner.io import find_path

TREE = """\
    images/NAME.jpg ...   (or another picture format)
    masks/NAME.png ...   (indexed or grey, pixel values are class ids, 255 = ignore)
    classes.txt   (line i names value i; or classes.json, classes.yaml)
    train.txt, val.txt   (optional: one NAME a line)"""


def folder(root: Path, split: str | None = None) -> SegmentationData:
    """Open a folder of images and masks under `root`.

    Class 0 is background if it is called background or has no name; with any other name it is an ordinary class, and
    all ids move up by one. Pixels of classes called null, unlabeled, unknown, ignore or void are ignored.

    The split is "train" or "val", as listed in `train.txt` / `val.txt`; without train.txt, "train" is everything that
    val.txt does not list. None: everything.
    """
    root, problems = Path(root), list[str]()
    image_folder, left_out = find_folder(root, ("images",), TREE), Counter[str]()
    images = files_by_stem(image_folder, image_suffixes())
    left_out.update(filter(None, (unsupported_kind(path.name) for path in image_folder.iterdir())))
    problems += [str(left_out_error(image_folder, left_out))] if left_out else []
    masks = files_by_stem(find_folder(root, ("masks",), TREE), MASK_SUFFIXES)
    names = read_class_names(root)
    items = _select(root, split, pair_files(images, masks, str(root), problems), problems)
    if not items:
        raise no_images(split, root, TREE)

    first = names.get(0, "background")
    ignored = {i: name for i, name in names.items() if i and name.casefold() in UNLABELED_NAMES}
    problems += [f"class {name!r} (value {i}) is not a class: its pixels are ignored" for i, name in ignored.items()]
    named = {i: name for i, name in names.items() if i not in ignored}
    classes = [first, *(named.get(i, "") for i in range(1, max(named, default=0) + 1))]
    unlabeled = first.casefold() in UNLABELED_NAMES
    shift = int(not unlabeled and first.casefold() != "background")  # class 0 is an ordinary one
    mask_values: dict[int, int | None] = {}
    if shift or ignored:
        mask_values = {i: i + shift for i, name in enumerate(classes) if name} | dict.fromkeys(ignored)
    if shift:
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
    path = find_path(f"{split}.txt", root)
    if path is None:
        if split != "train":
            raise FusionerError(
                f"list {root / split}.txt is missing: put the names of the split's images there, one a line"
            )
        val_list = find_path("val.txt", root)
        val = set(_listed(val_list, items)) if val_list else set()
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
        stem = name.stem if name.suffix.lower() in image_suffixes() else name.name
        stems[index.find(stem) or stem] = None
    return list(stems)
