"""What is missing in the cache, and whether it will fit."""

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fusioner.data.base import Item
from fusioner.errors import FusionerError
from fusioner.features.cache import Shelf
from fusioner.features.preprocess import image_digest, read_bytes

Track = Callable[[Sequence, str], Iterable]
"""Passes items through and moves a progress bar of that name."""

_MANIFEST_BYTES = 768  # of an entry, in both places


@dataclass(frozen=True)
class Job:
    """An image and the views to be encoded of it."""

    digest: str
    image: Path
    views: tuple[int, ...]


@dataclass
class Plan:
    """What there is to do.

    Attributes:
        digests: sha256 of every image's file, by image id; jobs: images with missing views, each content once.
        present: views that are there already; need, free: bytes.
    """

    digests: dict[str, str]
    jobs: list[Job]
    present: int
    need: int
    free: int

    @property
    def missing(self) -> int:
        """Views to be encoded."""
        return sum(len(job.views) for job in self.jobs)


def plan(shelf: Shelf, items: Sequence[Item], views: int = 1, workers: int = 4, track: Track | None = None) -> Plan:
    """Read every image file once (not its pixels) and see which views of it are missing.

    Raises:
        FusionerError: fewer views than 1, or an image file that cannot be read.
    """
    if views < 1:
        raise FusionerError(f"an image has at least 1 view, not {views}")
    shelf.refresh()
    digests = digest_all(items, workers, track)
    jobs, present = {}, 0
    for item in items:
        digest = digests[item.id]
        if digest not in jobs:
            lacking = tuple(view for _, view in shelf.missing((digest, view) for view in range(views)))
            present += views - len(lacking)
            jobs[digest] = Job(digest, item.image.absolute(), lacking)
    todo = [job for job in jobs.values() if job.views]
    need = sum(len(job.views) for job in todo) * (shelf.space.entry_bytes + _MANIFEST_BYTES)
    return Plan(digests, todo, present, need, free_bytes(shelf.folder))


def digest_all(items: Sequence[Item], workers: int = 4, track: Track | None = None) -> dict[str, str]:
    """Sha256 of every image file by image id; FusionerError where one cannot be read."""
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda item: image_digest(read_bytes(item.image)), items)
        shown = track(items, "checking images") if track else items
        return {item.id: digest for item, digest in zip(shown, found, strict=True)}


def free_bytes(folder: Path) -> int:
    """Room on the device where a folder is or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def check_room(todo: Plan, folder: Path) -> None:
    """FusionerError when what is to be written does not fit."""
    if todo.need > todo.free:
        raise FusionerError(
            f"{todo.missing} views need {readable(todo.need)}, but {folder} has {readable(todo.free)} free: "
            "free some space, choose another folder, or use int8, fewer views or a lower resolution"
        )


def readable(size: float) -> str:
    """Bytes for people: `1.5 GB`."""
    power = min(int(math.log10(max(size, 1)) // 3), 4)
    return f"{size / 1000**power:.{0 if power == 0 else 1}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
