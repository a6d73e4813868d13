"""Which pictures and videos the user means, and what their results are called."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from fusioner.errors import FusionerError

STDIN = Path("-")
VIDEOS = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Lower-case endings of the files that are taken for videos."""
VIDEO_ENDING = ".overlay.mp4"


@dataclass(frozen=True)
class Job:
    """One input, and the folder and the stem of the files made of it."""

    path: Path
    folder: Path
    stem: str

    @property
    def name(self) -> str:
        """Of the input, without folders."""
        return "stdin" if self.path == STDIN else self.path.name


def read_looks(scales: str, refine: bool | None, resolution: str) -> tuple[float, ...]:
    """As `read_scales`; FusionerError, too, where native resolution is to look in a way that only fast knows."""
    from fusioner.errors import FusionerError

    looks = read_scales(scales)
    if resolution == "native" and (refine or looks != (1.0,)):
        raise FusionerError("--scales and --refine are for --resolution fast: leave them away")
    return looks


def read_scales(text: str) -> tuple[float, ...]:
    """`0.75,1` as numbers.

    Raises:
        FusionerError: it is something else, or one is not above 0 and at most 16.
    """
    from fusioner.postprocess import check_scales

    try:
        return check_scales([float(part) for part in text.split(",")])
    except ValueError as error:
        raise FusionerError(f"--scales {text}: write numbers with commas between them, as in 0.75,1,1.25") from error


def find_inputs(
    names: Sequence[str], recursive: bool = False, out: Path | None = None
) -> tuple[dict[Path, Path], list[FusionerError]]:
    """Files, folders, globs (`**` goes down) and `-` -> {file: the subfolder its results go to}.

    In the order named, folders and globs sorted, each file once. A folder gives its pictures; with `recursive` also
    those of the folders inside, except hidden ones and `out`, and their results keep the folders apart. What names
    nothing comes back as an error, so that the rest can go on; a file that is missing or no picture is found out when
    it is read.
    """
    found: dict[Path, Path] = {}
    known: set[str] = set()
    errors: list[FusionerError] = []
    for name in names:
        try:
            some = _expand(name, recursive, out, errors)
        except FusionerError as error:
            errors.append(error)
            continue
        for path, below in some.items():
            if (real := os.path.realpath(path)) not in known:
                known.add(real)
                found[path] = below
    return found, errors


def name_results(found: Mapping[Path, Path], out: Path, endings: Iterable[str]) -> list[Job]:
    """Give every input the stem of its results: its own; where that is taken, with -2, -3, ... in the order named.

    Inputs are taken apart by subfolder. A video's results are STEM-000120 and the like, and STEM.overlay.mp4.

    Raises:
        FusionerError: a result would replace one of the inputs.
    """
    endings = tuple(endings)
    wished = {_key(below, _stem(path)): is_video(path) for path, below in found.items()}
    # A picture clip-000120.jpg wants the names of a frame of clip.mp4: then the video is numbered.
    framed = {m[1] for key, video in wished.items() if not video and (m := re.fullmatch(r"(.+)-\d{6,}", key))}
    inputs = {_identity(path) for path in found}
    taken: set[str] = set()
    jobs: list[Job] = []
    for path, below in found.items():
        stem, number, parts = _stem(path), 1, (VIDEO_ENDING,) if is_video(path) else endings
        while (
            _files(below, stem, parts) & taken
            or (number > 1 and _key(below, stem) in wished)
            or (is_video(path) and _key(below, stem) in framed)
        ):
            number += 1
            stem = f"{_stem(path)}-{number}"
        taken |= _files(below, stem, parts)
        for ending in parts:
            if (result := out / below / f"{stem}{ending}").exists() and _identity(result) in inputs:
                raise FusionerError(f"{result} would replace an input picture: choose another folder with --out")
        jobs.append(Job(path, out / below, stem))
    return jobs


def is_video(path: Path) -> bool:
    """By the ending of its name."""
    return path.suffix.lower() in VIDEOS


def _expand(name: str, recursive: bool, out: Path | None, errors: list[FusionerError]) -> dict[Path, Path]:
    path = Path(name).expanduser()
    if path != STDIN and path.is_dir():
        before = len(errors)
        found = _pictures(path, recursive, out, errors.append)
        if not found and len(errors) == before:
            raise FusionerError(f"folder {path} holds no pictures")
        return found
    if any(letter in name for letter in "*?[") and not path.exists():
        matches = sorted(one for one in map(Path, glob(str(path), recursive=True)) if not one.is_dir())
        if not matches:
            raise FusionerError(f"no file matches {name}")
        return dict.fromkeys(matches, Path())
    return {path: Path()}


def _pictures(
    folder: Path, recursive: bool, out: Path | None, complain: Callable[[FusionerError], None]
) -> dict[Path, Path]:
    """The pictures of a folder -> where they lie below it; links to folders are not followed."""
    from fusioner.image import list_images

    found = list_images(folder, out, recursive, complain)
    return {path: path.parent.relative_to(folder) for path in found}


def _stem(path: Path) -> str:
    return "stdin" if path == STDIN else path.stem


def _key(below: Path, stem: str) -> str:
    """A name as a file system that ignores case keeps it apart."""
    return str(below / stem).casefold()


def _files(below: Path, stem: str, endings: tuple[str, ...]) -> set[str]:
    return {_key(below, f"{stem}{ending}") for ending in endings}


def _identity(path: Path) -> tuple[int, int] | str:
    """The same for two names of one file, also through links."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino
