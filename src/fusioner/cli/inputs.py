"""Find the input pictures and videos of a command, and name their results."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from fusioner.errors import FusionerError
from fusioner.image import left_out_error, list_images
from fusioner.io import find_path

STDIN = Path("-")
VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
VIDEO_OVERLAY = ".overlay.mp4"
"""Suffix of the overlay of a video."""


@dataclass(frozen=True)
class InputFile:
    """An input, and the folder and stem of its result files."""

    path: Path
    folder: Path
    stem: str

    @property
    def name(self) -> str:
        """File name of the input."""
        return "stdin" if self.path == STDIN else self.path.name


def find_inputs(
    names: Sequence[str], recursive: bool = False, out: Path | None = None
) -> tuple[dict[Path, Path], list[FusionerError]]:
    """Expand files, folders, globs (`**` recurses) and `-` to {file: subfolder of its results}.

    Files come in the order named, those of folders and globs sorted, each file once. A folder yields its pictures, with
    `recursive` also those of its subfolders, except hidden ones and `out`. Names without any match are returned as
    errors, so that the others can be processed; missing and damaged files are found when they are read.
    """
    found: dict[Path, Path] = {}
    known: set[str] = set()
    errors: list[FusionerError] = []
    for name in names:
        for path, subfolder in _expand(name, recursive, out, errors).items():
            if (real_path := os.path.realpath(path)) not in known:
                known.add(real_path)
                found[path] = subfolder
    return found, errors


def name_results(found: Mapping[Path, Path], out: Path, suffixes: Iterable[str]) -> list[InputFile]:
    """Give every input a stem for its results: its own or, where that is taken, with -2, -3, ... in the order named.

    The results of a video are STEM-000120 and so on, and STEM.overlay.mp4. FusionerError if one would replace an input.
    """
    suffixes = tuple(suffixes)
    wanted = {_key(subfolder, _stem(path)): is_video(path) for path, subfolder in found.items()}
    # A picture clip-000120.jpg takes the name of a frame of clip.mp4; the video is then numbered.
    frames = {m[1] for key, video in wanted.items() if not video and (m := re.fullmatch(r"(.+)-\d{6,}", key))}
    inputs = {_identity(path) for path in found}
    taken: set[str] = set()
    sources: list[InputFile] = []
    for path, subfolder in found.items():
        own_suffixes = (VIDEO_OVERLAY,) if is_video(path) else suffixes
        stem, number = _stem(path), 1
        while (
            _files(subfolder, stem, own_suffixes) & taken
            or (number > 1 and _key(subfolder, stem) in wanted)
            or (is_video(path) and _key(subfolder, stem) in frames)
        ):
            number += 1
            stem = f"{_stem(path)}-{number}"
        taken |= _files(subfolder, stem, own_suffixes)
        for suffix in own_suffixes:
            if (result := out / subfolder / f"{stem}{suffix}").exists() and _identity(result) in inputs:
                raise FusionerError(f"{result} would replace an input picture: choose another folder with --out")
        sources.append(InputFile(path, out / subfolder, stem))
    return sources


def is_video(path: Path) -> bool:
    """Return whether the file name has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def _expand(name: str, recursive: bool, out: Path | None, errors: list[FusionerError]) -> dict[Path, Path]:
    path = Path(name).expanduser()
    path = path if path == STDIN else find_path(path) or path
    if path != STDIN and path.is_dir():
        known_errors, left_out = len(errors), list[str]()
        images = list(list_images(path, out, recursive, errors.append, left_out.append))
        if left_out:
            errors.append(left_out_error(f"folder {path}", Counter(left_out)))
        if not images and len(errors) == known_errors:
            video = next(filter(is_video, sorted(path.iterdir())), None)
            hint = f": of a folder only pictures are read, so name its videos, as {video}" if video else ""
            errors.append(FusionerError(f"folder {path} holds no pictures{hint}"))
        return {image: image.parent.relative_to(path) for image in images}
    if any(letter in name for letter in "*?[") and not path.exists():
        matches = glob(str(path), recursive=True) or glob(str(path).replace("\\", "/"), recursive=True)
        matches = sorted(match for match in map(Path, matches) if not match.is_dir())
        if not matches:
            errors.append(FusionerError(f"no file matches {name}"))
        return dict.fromkeys(matches, Path())
    return {path: Path()}


def _stem(path: Path) -> str:
    return "stdin" if path == STDIN else path.stem


def _key(subfolder: Path, stem: str) -> str:
    """Return a name as file systems that ignore case compare it."""
    return str(subfolder / stem).casefold()


def _files(subfolder: Path, stem: str, suffixes: tuple[str, ...]) -> set[str]:
    return {_key(subfolder, f"{stem}{suffix}") for suffix in suffixes}


def _identity(path: Path) -> tuple[int, int] | str:
    """Return the same value for all names of a file, including links."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino
