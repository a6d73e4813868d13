"""Maintenance of a feature cache: statistics, checksums, removal of unwanted entries."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fusioner.errors import FusionerError
from fusioner.features.cache import (
    CacheKey,
    entry_files,
    find_damage,
    image_digest,
    key_folders,
    read_bytes,
    read_header,
    remove_stale_files,
)
from fusioner.progress import Track, no_progress


@dataclass
class CacheInfo:
    """Contents of a cache for one key; `size` in bytes."""

    key: CacheKey
    images: int
    views: int
    size: int


@dataclass(frozen=True)
class Damage:
    """A damaged entry; `image` is empty if its header cannot be read."""

    path: Path
    image: str
    reason: str


@dataclass
class PruneReport:
    """Views and bytes removed, views kept, and those of them whose images are in a folder that does not exist."""

    views: int = 0
    size: int = 0
    kept: int = 0
    unreachable: int = 0


def info(cache: Path) -> list[CacheInfo]:
    """Return the contents of a cache by key; FusionerError if there is no such folder."""
    found = []
    for folder in _existing(cache):
        files = entry_files(folder)
        header = next((header for path in files if (header := read_header(path))), None)
        if header is not None:
            images = {path.name[:64] for path in files}
            found.append(CacheInfo(header.key, len(images), len(files), sum(path.stat().st_size for path in files)))
    return found


def verify(cache: Path, track: Track = no_progress, workers: int = 2) -> list[Damage]:
    """Read every entry and compare it with its checksum; FusionerError if there is no such folder."""
    files = [path for folder in _existing(cache) for path in entry_files(folder)]
    with ThreadPoolExecutor(workers) as pool:
        inspected = zip(track(files, "reading entries"), pool.map(_inspect, files), strict=True)
        return [damage for _, damage in inspected if damage]


def _inspect(path: Path) -> Damage | None:
    try:
        reason = find_damage(path)
    except FileNotFoundError:  # removed meanwhile
        return None
    except OSError as error:
        reason = error.strerror or str(error)
    if reason is None:
        return None
    header = read_header(path)
    return Damage(path, header.image if header else "", reason)


def prune(
    cache: Path,
    wanted: Callable[[CacheKey], bool] = lambda _: True,
    missing_folders: bool = False,
    dry_run: bool = False,
    track: Track = no_progress,
) -> PruneReport:
    """Remove entries of unwanted keys, and of images that no longer exist or have changed; with `dry_run` only count.

    Without `missing_folders` entries of images whose whole folder is missing stay: its disk may not be mounted.
    """
    files = [path for folder in _existing(cache) for path in entry_files(folder)]
    report, digest = PruneReport(), functools.cache(_digest)
    for path in track(files, "pruning entries"):
        header = read_header(path)
        if header is None:  # left to `verify`
            continue
        image = Path(header.image)
        reachable = missing_folders or image.parent.is_dir()
        if wanted(header.key) and (not reachable or digest(image) == header.file_name[:64]):
            report.kept += 1
            report.unreachable += not reachable
            continue
        report.views += 1
        report.size += header.key.entry_bytes
        if not dry_run:
            path.unlink(missing_ok=True)
    if not dry_run:
        remove_stale_files(cache)
        for folder in key_folders(cache):
            with suppress(OSError):  # not empty
                folder.rmdir()
    return report


def _digest(image: Path) -> str:
    try:
        return image_digest(read_bytes(image))
    except FusionerError:
        return ""


def _existing(cache: Path) -> list[Path]:
    if not cache.is_dir():
        raise FusionerError(f"there is no feature cache {cache}: `fusioner features build` creates one")
    return key_folders(cache)
