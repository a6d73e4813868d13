"""The plan of a batch run: the images of each shard, written once and never changed.

    OUT/plan/shards.jsonl  a shard per line: its image files, or its place in a Parquet file or an archive
    OUT/plan/index.bin     place of its line and number of its images, see `_RECORD`
    OUT/plan/plan.json     settings, sha256 of the input
    OUT/shards/0000/part-000000012.parquet    results, complete or absent
    OUT/masks/0000/000000012345.png           masks, with --format mask
    OUT/images, OUT/labels, OUT/data.yaml     data set of Ultralytics, with --format yolo

The folder `plan` is written under another name and renamed. `index.bin` is memory-mapped, so that memory does not grow
with the number of shards.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

from fusioner.batch.sources import OnLeftOut, Picture, Source
from fusioner.errors import FusionerError, first_difference
from fusioner.io import FileLocks, cannot_write, find_path, writable_folder

FORMAT = "fusioner-batch-4"
DEFAULT_SHARD_SIZE = 256
_RECORD = np.dtype([("offset", "<u8"), ("count", "<u8")])
_SHARDS_PER_FOLDER = 1000
_PLANNING = 2**60  # lock held while the plan is written; shards are locked by their numbers
_MAX_CRASHES = 2  # on one image


@dataclass(frozen=True)
class Shard:
    """Images of the input, starting with number `first`: files, or `count` of a container, starting at `start`."""

    number: int
    first: int
    count: int
    files: Sequence[str] = ()
    container: str = ""
    start: int = 0


class Plan:
    """A plan on disk: numbers of images and shards, and the settings that determine the results, as JSON values."""

    def __init__(self, out: Path) -> None:
        self.out, self._folder = out, out / "plan"
        try:
            about = json.loads((self._folder / "plan.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise FusionerError(f"{out} has no readable plan of a batch run: choose another --out") from error
        if about.get("format") != FORMAT:
            raise FusionerError(f"{out} was written by another version of fusioner: choose another --out")
        self.settings, self.sha256 = about["settings"], about["sha256"]
        self._index = np.memmap(self._folder / "index.bin", _RECORD, "r")
        self.images, self.shards = int(self._index["count"].sum()), len(self._index)

    def __getitem__(self, number: int) -> Shard:
        with (self._folder / "shards.jsonl").open("rb") as file:
            file.seek(self._index["offset"][number])
            return Shard(number, **json.loads(file.readline()))

    def pictures(self, shard: Shard, source: Source) -> Iterator[Picture]:
        """Yield the pictures of a shard."""
        if shard.container:
            yield from source.read(shard.container, shard.start, shard.count)
        for name in shard.files:
            yield Picture(name, find_path(name, source.base) or source.base / name)

    def result(self, number: int) -> Path:
        """Return the path of a shard's results."""
        return self.out / "shards" / f"{number // _SHARDS_PER_FOLDER:04}" / f"part-{number:09}.parquet"

    def done(self) -> Bool[np.ndarray, " shards"]:
        """Return which shards have results, by listing folders (one call per thousand shards)."""
        done = np.zeros(self.shards, bool)
        for path in (self.out / "shards").glob("*/part-*.parquet"):
            if (number := path.stem.removeprefix("part-")).isdecimal() and int(number) < self.shards:
                done[int(number)] = True
        return done

    def unlocked(self, shards: np.ndarray) -> np.ndarray:
        """Return those of the shards that no process is working on."""
        with self.locks() as locks:
            return shards[np.array([locks.acquire(int(number)) for number in shards], bool)]

    def locks(self) -> FileLocks:
        """Return the locks of the shards, by number."""
        return FileLocks(self.out / ".locks")

    def count(self, which: Bool[np.ndarray, " shards"]) -> int:
        """Return the number of images of those shards."""
        return int(self._index["count"][which].sum())


def make_plan(
    source: Source,
    out: Path,
    size: int | None,
    settings: Mapping[str, Any],
    on_left_out: OnLeftOut = lambda kind: None,
) -> Plan:
    """Return the plan in `out`, writing it first if there is none; see `OnLeftOut`.

    `size` is the maximum number of images per shard; None: that of the existing plan, else 256. FusionerError if `out`
    belongs to another input or to other settings (which are named), or the input has no pictures.
    """
    writable_folder(out)
    with FileLocks(out / ".locks") as locks:
        while not locks.acquire(_PLANNING):
            time.sleep(0.1)
        if (out / "plan").is_dir():
            plan = Plan(out)
            _check_same(plan, source, size, settings, on_left_out)
            return plan
        if any(path.name[0] != "." for path in out.iterdir()):
            raise FusionerError(f"{out} holds other files and no plan of a batch run: choose another --out")
        shutil.rmtree(out / ".plan", ignore_errors=True)  # of a run that was killed here
        try:
            _write(source, out, size or DEFAULT_SHARD_SIZE, settings, on_left_out)
        except OSError as error:
            raise cannot_write(out / "plan", error) from error
        return Plan(out)


def _check_same(
    plan: Plan, source: Source, size: int | None, settings: Mapping[str, Any], on_left_out: OnLeftOut
) -> None:
    new = {**settings, "shard size": size or plan.settings["shard size"]}
    if change := first_difference(plan.settings, new):
        raise FusionerError(f"{plan.out} was begun with other settings: {change}: choose another --out")
    digest = hashlib.sha256()
    for _ in _names(source, plan.out, on_left_out, digest):
        pass
    if digest.hexdigest() != plan.sha256:
        raise FusionerError(f"{plan.out} was begun with another input than {source.text} is now: choose another --out")


def _names(source: Source, out: Path, on_left_out: OnLeftOut, digest: "hashlib._Hash") -> Iterator[str]:
    """Yield the names of the input and add them to its digest."""
    for name in source.names(out, on_left_out):
        digest.update(json.dumps(source.identity(name)).encode() + b"\n")
        yield name


def _cut(source: Source, names: Iterator[str], size: int, on_left_out: OnLeftOut) -> Iterator[dict[str, Any]]:
    """Yield the values of each `Shard` but its number and its first image."""
    if source.kind == "files":
        while files := list(islice(names, size)):
            yield {"count": len(files), "files": files}
    for name in names:
        for start, count in source.cut(name, size, on_left_out):
            yield {"count": count, "container": name, "start": start}


def _write(source: Source, out: Path, size: int, settings: Mapping[str, Any], on_left_out: OnLeftOut) -> None:
    folder, digest, images = out / ".plan", hashlib.sha256(), 0
    folder.mkdir()
    with (folder / "shards.jsonl").open("wb") as shards, (folder / "index.bin").open("wb") as index:
        for shard in _cut(source, _names(source, out, on_left_out, digest), size, on_left_out):
            index.write(np.array((shards.tell(), shard["count"]), _RECORD).tobytes())
            shards.write(json.dumps({"first": images} | shard).encode() + b"\n")
            images += shard["count"]
    if not images:
        raise FusionerError(f"{source.text} holds no pictures")
    about = {"format": FORMAT, "settings": {**settings, "shard size": size}, "sha256": digest.hexdigest()}
    (folder / "plan.json").write_text(json.dumps(about), "utf-8")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    folder.rename(out / "plan")


class CrashLog:
    """Log of one process's attempt at a shard, in OUT/.attempts/NUMBER; removed when the attempt succeeds.

    It finds images that kill the process (a crashing decoder, no memory left). The shard of a process that died is
    tried again, image by image, and each image is logged before its work begins. An image at which two such attempts
    ended becomes an error row. Attempts that ended with the whole run (kill -9) do not count.
    """

    def __init__(self, out: Path, shard: int, run: str) -> None:
        """`run` identifies the run of the attempt."""
        self.path = out / ".attempts" / str(shard)
        try:
            self.path.parent.mkdir(exist_ok=True)
            lines = self.path.read_text("ascii").splitlines() if self.path.exists() else []
            self.one_by_one = lines[:1] == [run]  # after a crash
            # Each attempt is a dash and the images begun; the last of them is the one it ended at.
            attempts = [attempt.split() for attempt in "\n".join(lines[1:]).split("-")] if self.one_by_one else []
            ends = [int(images[-1]) for images in attempts if images]
            self.poison_images = frozenset(image for image in ends if ends.count(image) >= _MAX_CRASHES)
            self._file = self.path.open("a" if self.one_by_one else "w", buffering=1, encoding="ascii")  # line by line
            self._file.write("-\n" if self.one_by_one else f"{run}\n-\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def begin(self, image: int) -> None:
        """Log that the work on an image begins."""
        if self.one_by_one:
            self._file.write(f"{image}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)
