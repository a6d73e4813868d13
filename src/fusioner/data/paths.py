"""Finding the folders and files of a data set's official tree, and saying what is missing in it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fusioner.errors import FusionerError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def find_folder(root: Path, candidates: Sequence[str], tree: str) -> Path:
    """The first of `candidates` that is a folder under `root`.

    Raises:
        FusionerError: none is; names the first and shows the expected `tree`.
    """
    if not root.is_dir():
        raise FusionerError(f"there is no folder {root}; --root must be the folder that holds\n{tree}")
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise FusionerError(f"folder {root / candidates[0]} is missing; {root} must hold\n{tree}")


def read_lines(path: Path) -> list[str]:
    """Non-empty stripped lines of a text list (UTF-8, with or without a byte-order mark)."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FusionerError(f"list {path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def files_by_stem(folder: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files of one folder by name without extension, sorted; hidden files and other kinds are left out.

    Raises:
        FusionerError: two files share a stem, so that one mask would stand for both.
    """
    allowed = tuple(suffixes)
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in allowed or path.name.startswith("."):
            continue
        if path.stem in found:
            raise FusionerError(f"{found[path.stem]} and {path.name} share the stem {path.stem!r}; rename one of them")
        found[path.stem] = path
    return found


def summarize(names: Iterable[str], limit: int = 3) -> str:
    """`a, b, c and 12 more`: a list short enough for one sentence."""
    names = sorted(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
