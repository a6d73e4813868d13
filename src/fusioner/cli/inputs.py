"""Which pictures the user means, and what their results are called."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from fusioner.errors import FusionerError


@dataclass(frozen=True)
class Job:
    """One picture and the stem of the files made of it."""

    path: Path
    stem: str


def find_images(names: Sequence[str]) -> tuple[list[Path], list[FusionerError]]:
    """Files, folders (their pictures, not those of folders inside) and globs (`**` goes down) -> picture files.

    In the order named, folders and globs sorted, each file once. What names nothing comes back as an error, so that
    the rest can go on; a file that is missing or no picture is found out when it is read.
    """
    paths: dict[str, Path] = {}
    errors: list[FusionerError] = []
    for name in names:
        try:
            for path in _expand(name):
                paths.setdefault(os.path.realpath(path), path)
        except FusionerError as error:
            errors.append(error)
    return list(paths.values()), errors


def name_results(paths: Sequence[Path], out: Path, endings: Iterable[str]) -> list[Job]:
    """Give every picture the stem of its results: its own; where that is taken, with -2, -3, ... in the order named.

    Raises:
        FusionerError: a result would replace one of the pictures.
    """
    endings = tuple(endings)
    wished, taken = {path.stem.casefold() for path in paths}, set[str]()
    pictures = {_identity(path) for path in paths}
    jobs: list[Job] = []
    for path in paths:
        stem, number = path.stem, 1
        while _files(stem, endings) & taken or (number > 1 and stem.casefold() in wished):
            number += 1
            stem = f"{path.stem}-{number}"
        taken |= _files(stem, endings)
        for ending in endings:
            if (result := out / f"{stem}{ending}").exists() and _identity(result) in pictures:
                raise FusionerError(f"{result} would replace an input picture: choose another folder with --out")
        jobs.append(Job(path, stem))
    return jobs


def _expand(name: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        from fusioner.inference.image import image_suffixes

        endings = image_suffixes()
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise FusionerError(f"cannot read folder {path}: {error.strerror or error}") from error
        found = [one for one in inside if one.suffix.lower() in endings and one.name[0] != "." and one.is_file()]
        if not found:
            raise FusionerError(f"folder {path} holds no pictures")
        return found
    if any(letter in name for letter in "*?[") and not path.exists():
        found = sorted(one for one in map(Path, glob(str(path), recursive=True)) if not one.is_dir())
        if not found:
            raise FusionerError(f"no file matches {name}")
        return found
    return [path]


def _files(stem: str, endings: tuple[str, ...]) -> set[str]:
    """Names as a file system that ignores case keeps them apart."""
    return {f"{stem}{ending}".casefold() for ending in endings}


def _identity(path: Path) -> tuple[int, int] | str:
    """The same for two names of one file, also through links."""
    try:
        status = path.stat()
    except OSError:
        return str(path)
    return status.st_dev, status.st_ino
