"""FSS-1000, 1,000 classes of ten 224x224 images with binary masks, and Mosaic-4.

A mosaic is four FSS-1000 test images of four classes, tiled two by two; all four names are prompted together. The paper
names the task but not its lists. Here the classes are shuffled and taken four at a time, each with one of its images
that was not used yet, until every image was used. The 240 official test classes give 600 mosaics; each class is in 10
of them and each image in one.
"""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np

from fusioner.data.base import Item, SegmentationData
from fusioner.data.paths import check_split, files_by_stem, pair_files, summarize
from fusioner.errors import FusionerError

_TREE = """\
    abacus/1.jpg, abacus/1.png (0 / 255) ... abacus/10.jpg, abacus/10.png
    ab_wheel/1.jpg ...   (one folder a class)"""
_SPLITS = ("train", "val", "test")
_TILES = 4


def fss1000_classes(split: str) -> list[str]:
    """Return the folder names of the official split: train (520), val (240) or test (240)."""
    lines = (files("fusioner.data") / "splits" / "fss1000.txt").read_text("utf-8").splitlines()
    return [name for part, name in (line.split(" ", 1) for line in lines) if part == split]


def fss1000(root: Path, split: str | None = None) -> SegmentationData:
    """Open FSS-1000, or any `root` with one folder per class that holds `N.jpg` and `N.png`.

    The splits "train", "val" and "test" take the folders of the official class lists, None takes every folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FusionerError(f"there is no folder {root}; it must hold\n{_TREE}")
    check_split("fss1000", split, _SPLITS)
    found = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    official = found if split is None else set(fss1000_classes(split))
    problems = list[str]()
    if missing := official - found:
        problems.append(f"{len(missing)} classes of {split} have no folder: {summarize(missing)}")
    if split and (others := found.difference(*(fss1000_classes(part) for part in _SPLITS))):
        names = summarize(others)
        problems.append(f"{len(others)} folders are no FSS-1000 classes and left out (--split all takes all): {names}")
    names, items = sorted(found & official), []
    for class_id, name in enumerate(names, start=1):
        images, masks = files_by_stem(root / name, (".jpg", ".jpeg")), files_by_stem(root / name, (".png",))
        numbered = dict(sorted(images.items(), key=lambda entry: (len(entry[0]), entry[0])))
        pairs = pair_files(numbered, masks, name, problems)
        items += [replace(item, id=f"{name}/{item.id}", class_id=class_id) for item in pairs]
    if not items:
        which = "no class folder" if split is None else f"none of the {len(official)} official classes of {split}"
        hint = "" if split is None else " (--split all takes folders of any name)"
        raise FusionerError(f"{which} with images and masks in {root}{hint}; it must hold\n{_TREE}")
    return SegmentationData("fss1000", ("background", *names), items, problems=problems)


def mosaic4(root: Path, split: str | None = None, seed: int = 0) -> SegmentationData:
    """Compose mosaics of `fss1000(root, split)`, which has at least four classes; `seed` is that of the arrangement."""
    data = fss1000(root, split)
    if len(data.class_ids) < _TILES:
        raise FusionerError(f"a mosaic shows {_TILES} classes, {root} has {len(data.class_ids)}")
    rng = np.random.default_rng(seed)
    by_class = {i: [item for item in data.items if item.class_id == i] for i in data.class_ids}
    shuffled = {i: [items[k] for k in rng.permutation(len(items))] for i, items in by_class.items() if items}
    mosaics: list[Item] = []
    for turn in range(max(len(items) for items in shuffled.values())):
        order = rng.permutation(list(shuffled)).tolist()
        order += order[: -len(order) % _TILES]  # complete the last mosaic with the first classes of the turn
        for start in range(0, len(order), _TILES):
            tiles = tuple(shuffled[i][turn % len(shuffled[i])] for i in order[start : start + _TILES])
            name = f"{len(mosaics) + 1:03d}: {' + '.join(tile.id for tile in tiles)}"
            mosaics.append(Item(name, tiles[0].image, tiles[0].mask, tiles=tiles))
    return SegmentationData("mosaic4", data.classes, mosaics, prompts=data.prompts, problems=data.problems)
