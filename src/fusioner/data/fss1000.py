"""FSS-1000: 1,000 classes of ten 224x224 images with binary masks."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from fusioner.data.base import SegmentationData
from fusioner.data.paths import check_split, files_by_stem, pair_files, summarize
from fusioner.errors import FusionerError

TREE = """\
    abacus/1.jpg, abacus/1.png (0 / 255) ... abacus/10.jpg, abacus/10.png
    ab_wheel/1.jpg ...   (one folder a class)"""

SPLITS = ("train", "val", "test")


def fss1000_classes(split: str) -> list[str]:
    """Return the folder names of the official split: train (520), val (240) or test (240)."""
    lines = (files("fusioner.data") / "splits" / "fss1000.txt").read_text("utf-8").splitlines()
    return [name for part, name in (line.split(" ", 1) for line in lines) if part == split]


def fss1000(root: Path, split: str | None = None) -> SegmentationData:
    """Open FSS-1000, or any folder of the same layout, under `root`.

    Args:
        root: one folder per class, with `N.jpg` and `N.png` in each.
        split: "train", "val" or "test" of the official class lists; None: every folder.

    Raises:
        FusionerError: no folder `root`, an unknown split, or no class of the split in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FusionerError(f"there is no folder {root}; it must hold\n{TREE}")
    check_split("fss1000", split, SPLITS)
    found = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    official = found if split is None else set(fss1000_classes(split))
    problems = list[str]()
    if missing := official - found:
        problems.append(f"{len(missing)} classes of {split} have no folder: {summarize(missing)}")
    if split and (others := found.difference(*(fss1000_classes(part) for part in SPLITS))):
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
        raise FusionerError(f"{which} with images and masks in {root}{hint}; it must hold\n{TREE}")
    return SegmentationData("fss1000", ("background", *names), items, problems=problems)
