"""Finding the files of a data set's directory tree and matching images with masks."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from fusioner.data.base import Item
from fusioner.errors import FusionerError
from fusioner.io import find_path, name_key, parse_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
_MASK_ENDING = re.compile(r"[_-](mask|seg|labels?)$", re.IGNORECASE)


def find_folder(root: Path, candidates: Sequence[str], tree: str) -> Path:
    """Return the first of `candidates` that is a folder under `root`; the error shows the expected `tree`."""
    if not root.is_dir():
        raise FusionerError(f"there is no folder {root}; --root must be the folder that holds\n{tree}")
    for candidate in candidates:
        if (folder := find_path(candidate, root)) and folder.is_dir():
            return folder
    raise FusionerError(f"folder {root / candidates[0]} is missing; {root} must hold\n{tree}")


def read_lines(path: Path) -> list[str]:
    """Return the non-empty stripped lines of a text list (UTF-8, with or without a byte-order mark)."""
    return [line.strip() for line in parse_file(path, str.splitlines, "list ") if line.strip()]


def files_by_stem(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Return the files of one folder, sorted, by name without extension, which must be unique; omit hidden files."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in found:
            raise FusionerError(f"{found[path.stem]} and {path.name} share the stem {path.stem!r}; rename one of them")
        found[path.stem] = path
    return found


class NameIndex:
    """Finds names as other systems and tools write them; see `io.find_path`. Folders do not count."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names, self._by_key = set[str](), dict[str, list[str]]()
        for name in names:
            self._names.add(name)
            self._by_key.setdefault(_last_key(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Return the name that is meant, None if there is none or more than one."""
        candidates = self._by_key.get(_last_key(name), [])
        return name if name in self._names else candidates[0] if len(candidates) == 1 else None


def _last_key(name: str) -> str:
    return name_key(name.replace("\\", "/").rsplit("/", 1)[-1])


def find_file(names: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """Return the file of the first name (with or without its folders) in the first folder that has one.

    Exact matches come before those of `io.find_path`.
    """
    candidates = [form for name in names for form in (name, PureWindowsPath(name).name)]
    for find in (lambda name, folder: folder / name, find_path):
        for folder in folders:
            for name in candidates:
                if (path := find(name, folder)) and path.is_file():
                    return path
    return None


def pair_files(images: Mapping[str, Path], masks: Mapping[str, Path], where: str, problems: list[str]) -> list[Item]:
    """Match images with masks by id, in the order of `images`; report files without partner in `problems`.

    The name of a mask may end in _mask, -mask, _seg, _label or _labels.
    """
    index, mask_of = NameIndex(images), dict[str, str]()
    for mask in masks:
        image = index.find(mask) or index.find(_MASK_ENDING.sub("", mask))
        if image is not None and mask_of.setdefault(image, mask) != mask:
            raise FusionerError(f"{masks[mask_of[image]]} and {masks[mask].name} are masks of one image: remove one")
    for single, kind, other in (
        (images.keys() - mask_of.keys(), "images", "mask"),
        (masks.keys() - set(mask_of.values()), "masks", "image"),
    ):
        if single:
            problems.append(f"{len(single)} {kind} of {where} have no {other}: {summarize(single)}")
    return [Item(i, path, masks[mask_of[i]]) for i, path in images.items() if i in mask_of]


def pair_listed(
    ids: Iterable[str], images: Mapping[str, Path], masks: Mapping[str, Path], where: str, problems: list[str]
) -> list[Item]:
    """Match the images of a list with their masks; report those without image or mask in `problems`."""
    image_index, mask_index = NameIndex(images), NameIndex(masks)
    found = [(listed, image_index.find(listed), mask_index.find(listed)) for listed in ids]
    if missing := [listed for listed, image, mask in found if image is None or mask is None]:
        problems.append(f"{len(missing)} images of {where} have no image or mask file: {summarize(missing)}")
    return [
        Item(image, images[image], masks[mask]) for _, image, mask in found if image is not None and mask is not None
    ]


def no_images(split: str | None, root: Path, tree: str) -> FusionerError:
    """Return the error for a split without any usable image."""
    return FusionerError(f"no image of split {split or 'all'} has a mask under {root}; it must hold\n{tree}")


def check_split(name: str, split: str | None, splits: Iterable[str]) -> None:
    """Raise a FusionerError unless `split` is None or one of `splits`."""
    if split is not None and split not in splits:
        raise FusionerError(f"{name} has no split {split!r}; choose {' or '.join(splits)}")


def summarize(names: Iterable[str], limit: int = 3) -> str:
    """Return `a, b, c and 12 more`: a list short enough for one sentence."""
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
