"""FSS-1000: a thousand classes of ten 224x224 images, one binary mask each."""

from importlib.resources import files
from pathlib import Path

from fusioner.data.base import Item, SegmentationData
from fusioner.data.paths import files_by_stem, summarize
from fusioner.errors import FusionerError

TREE = """\
    abacus/1.jpg, abacus/1.png (0 / 255) ... abacus/10.jpg, abacus/10.png
    ab_wheel/1.jpg ...   (one folder a class)"""

SPLITS = ("train", "val", "test")


def fss1000_classes(split: str) -> list[str]:
    """Folder names of the official split: train (520), val (240) or test (240)."""
    lines = (files("fusioner.data") / "splits" / "fss1000.txt").read_text("utf-8").splitlines()
    return [name for part, name in (line.split(" ", 1) for line in lines) if part == split]


def fss1000(root: Path, split: str | None = None) -> SegmentationData:
    """FSS-1000, or any folder laid out like it, under `root`.

    Args:
        root: one folder a class, `N.jpg` with `N.png` in each.
        split: "train", "val" or "test" of the official class lists; None: every folder found.

    Raises:
        FusionerError: no folder `root`, an unknown split, or no class of the split in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FusionerError(f"there is no folder {root}; it must hold\n{TREE}")
    if split not in (None, *SPLITS):
        raise FusionerError(f"fss1000 has no split {split!r}; choose train, val or test")
    found = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    official = found if split is None else set(fss1000_classes(split))
    problems = (
        [f"{len(lost)} classes of {split} have no folder: {summarize(lost)}"] if (lost := official - found) else []
    )
    if split and (own := found.difference(*(fss1000_classes(part) for part in SPLITS))):
        problems.append(
            f"{len(own)} folders are no FSS-1000 classes and left out (--split all takes all): {summarize(own)}"
        )
    names = sorted(found & official)
    items = [item for i, name in enumerate(names, start=1) for item in _items(root / name, i, problems)]
    if not items:
        which = "no class folder" if split is None else f"none of the {len(official)} official classes of {split}"
        other = "" if split is None else " (--split all takes folders of any name)"
        raise FusionerError(f"{which} with images and masks in {root}{other}; it must hold\n{TREE}")
    return SegmentationData("fss1000", ("background", *names), items, problems=problems)


def _items(folder: Path, class_id: int, problems: list[str]) -> list[Item]:
    images, masks = files_by_stem(folder, (".jpg", ".jpeg")), files_by_stem(folder, (".png",))
    if lonely := images.keys() ^ masks.keys():
        problems.append(f"{len(lonely)} files of {folder.name} have no image or no mask: {summarize(lonely)}")
    stems = sorted(images.keys() & masks.keys(), key=lambda s: (len(s), s))
    return [Item(f"{folder.name}/{s}", images[s], masks[s], class_id) for s in stems]
