"""A user's own data: images/, masks/ with the same stems, and the names of the classes."""

from collections import Counter
from pathlib import Path

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import UNLABELED_NAMES, prompt_of, read_class_names
from fusioner.data.paths import IMAGE_SUFFIXES, files_by_stem, find_folder, read_lines, summarize
from fusioner.errors import FusionerError

TREE = """\
    images/NAME.jpg ...   (jpg, jpeg, png or webp)
    masks/NAME.png ...   (indexed or grey, pixel values are class ids, 255 = ignore)
    classes.txt   (line i names value i; or classes.json, classes.yaml)
    train.txt, val.txt   (optional: one NAME a line)"""


def folder(root: Path, split: str | None = None) -> SegmentationData:
    """A folder of images and masks under `root`.

    Class 0 called background (or not named) is background; called null, unlabeled, unknown, ignore or void, its pixels
    are ignored; called anything else it is an ordinary class, and all ids move up by one.

    Args:
        root: holds `images`, `masks` and `classes.txt` (or .json, .yaml).
        split: "train" or "val" as listed in `train.txt` / `val.txt`; without train.txt, train is what val.txt leaves.
            None: everything.

    Raises:
        FusionerError: a missing folder or file (named, with the expected tree), or no image with a mask.
    """
    root = Path(root)
    pictures = files_by_stem(find_folder(root, ("images",), TREE), IMAGE_SUFFIXES)
    labels = files_by_stem(find_folder(root, ("masks",), TREE), (".png",))
    names = read_class_names(root)
    problems: list[str] = []
    if lonely := pictures.keys() - labels.keys():
        problems.append(f"{len(lonely)} images have no mask in {root / 'masks'} (a PNG each): {summarize(lonely)}")
    if lonely := labels.keys() - pictures.keys():
        problems.append(f"{len(lonely)} masks have no image in {root / 'images'}: {summarize(lonely)}")
    both = [stem for stem in pictures if stem in labels]
    chosen = _chosen(root, split, both, problems)
    if not chosen:
        raise FusionerError(f"no image of split {split or 'all'} has a mask under {root}; it must hold\n{TREE}")
    items = [Item(stem, pictures[stem], labels[stem]) for stem in chosen]
    return _assemble(names, items, problems)


def _assemble(names: dict[int, str], items: list[Item], problems: list[str]) -> SegmentationData:
    first = names.get(0, "background")
    unlabeled = first.casefold() in UNLABELED_NAMES
    ordinary = not unlabeled and first.casefold() != "background"
    classes = [names.get(i, "") for i in range(max(names) + 1)]
    classes[0] = first
    values = {i: i + 1 for i, name in enumerate(classes) if name} if ordinary else {}
    classes = ["unlabeled", *classes] if ordinary else classes
    return SegmentationData(
        "folder", tuple(classes), items, unlabeled or ordinary, _prompts(classes), values, problems=problems
    )


def _prompts(classes: list[str]) -> tuple[str, ...]:
    """Prompts of all classes; one whose words another class would share keeps its full name."""
    words = [prompt_of(name) for name in classes]
    count = Counter(word.casefold() for word in words)
    return tuple(w if count[w.casefold()] == 1 else name for w, name in zip(words, classes, strict=True))


def _chosen(root: Path, split: str | None, stems: list[str], problems: list[str]) -> list[str]:
    if split is None:
        return stems
    path = root / f"{split}.txt"
    if not path.is_file():
        if split != "train":
            raise FusionerError(f"list {path} is missing: put the names of the split's images there, one a line")
        held_out = set(_listed(root / "val.txt")) if (root / "val.txt").is_file() else set()
        return [stem for stem in stems if stem not in held_out]
    listed, present = _listed(path), set(stems)
    if lost := [stem for stem in listed if stem not in present]:
        problems.append(f"{len(lost)} names of {path.name} have no image with a mask: {summarize(lost)}")
    return [stem for stem in listed if stem in present]


def _listed(path: Path) -> list[str]:
    """Stems of a list, each once; an image's extension or leading folder is dropped."""
    stems: dict[str, None] = {}
    for line in read_lines(path):
        name = Path(line).name
        stems[Path(name).stem if Path(name).suffix.lower() in IMAGE_SUFFIXES else name] = None
    return list(stems)
