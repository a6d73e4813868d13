"""The plan of a run: which images each shard holds, written once and never changed.

    OUT/plan/names.jsonl   names of the image files, or of the containers, a JSON string a line
    OUT/plan/shards.bin    a record a shard, see `_RECORD`
    OUT/plan/plan.json     what was asked, how many shards and images, the sha256 of the input
    OUT/shards/0000/part-000000012.parquet    results, there whole or not at all
    OUT/masks/0000/000000012345.png           masks, where asked for

The folder `plan` is written beside and renamed. Opening it maps the shards' records: memory does not grow with them.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from fusioner.batch.sources import Picture, Piece, Source
from fusioner.errors import FusionerError
from fusioner.io import FileLocks, cannot_write, writable_folder

FORMAT = "fusioner-batch-1"
_RECORD = np.dtype([("container", "<u4"), ("count", "<u4"), ("start", "<u8"), ("first", "<u8")])
_FILES = 2**32 - 1
"""Stands for no container: then `start` is a byte of names.jsonl."""
_A_FOLDER = 1000
PLANNING = 2**60
"""What is claimed of OUT by who writes its plan; shards are claimed by their numbers."""


@dataclass(frozen=True)
class Shard:
    """A shard of the plan: `count` images, the first of them number `first` of the whole input."""

    number: int
    first: int
    count: int
    container: str
    start: int


class Plan:
    """A plan on disk.

    Attributes:
        out: the run's folder; images, shards: how many there are.
        asked: plain values that decide the results: labels, model and so on.
    """

    def __init__(self, out: Path) -> None:
        """Raises FusionerError when there is none, or it is of another version."""
        self.out, self._folder = out, out / "plan"
        try:
            about = json.loads((self._folder / "plan.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise FusionerError(f"{out} holds no plan of a run that can be read: choose another --out") from error
        if about.get("format") != FORMAT:
            raise FusionerError(f"{out} is of another version of fusioner: choose another --out")
        self.asked, self.sha256 = about["asked"], about["sha256"]
        self.images, self.shards = int(about["images"]), int(about["shards"])
        self._records = np.memmap(self._folder / "shards.bin", _RECORD, "r") if self.shards else np.empty(0, _RECORD)

    def __getitem__(self, number: int) -> Shard:
        record = self._records[number]
        container = "" if record["container"] == _FILES else self._containers[record["container"]]
        return Shard(number, int(record["first"]), int(record["count"]), container, int(record["start"]))

    def pictures(self, shard: Shard, source: Source) -> Iterator[Picture]:
        """What a shard holds, one after another."""
        if shard.container:
            yield from source.read(shard.container, Piece(shard.start, shard.count))
            return
        with (self._folder / "names.jsonl").open("rb") as file:
            file.seek(shard.start)
            for line in islice(file, shard.count):
                name = json.loads(line)
                yield Picture(name, source.base / name)

    def result(self, number: int) -> Path:
        """The file of a shard's results."""
        return self.out / "shards" / f"{number // _A_FOLDER:04}" / f"part-{number:09}.parquet"

    def done(self) -> Bool[np.ndarray, " shards"]:
        """Which shards have results; found by listing folders, not by asking for every file."""
        there = np.zeros(self.shards, bool)
        for path in (self.out / "shards").glob("*/part-*.parquet"):
            if (number := path.stem.removeprefix("part-")).isdecimal() and int(number) < self.shards:
                there[int(number)] = True
        return there

    def count(self, which: Bool[np.ndarray, " shards"]) -> int:
        """Images of those shards."""
        return int(self._records["count"][which].sum())

    @cached_property
    def _containers(self) -> list[str]:
        with (self._folder / "names.jsonl").open("rb") as file:
            return [json.loads(line) for line in file]


def make_plan(source: Source, out: Path, size: int | None, asked: Mapping[str, Any]) -> Plan:
    """The plan in `out`, written now where there is none.

    Args:
        size: most images of a shard; None: 256, or the size that the plan has.
        asked: see `Plan`.

    Raises:
        FusionerError: `out` belongs to another input or other settings (named), the input is empty, or the system
            refuses to write.
    """
    writable_folder(out)
    with FileLocks(out / ".locks") as locks:
        while not locks.acquire(PLANNING):
            time.sleep(0.1)
        if (out / "plan").is_dir():
            plan = Plan(out)
            _check_same(plan, source, size, asked)
            return plan
        if any(one.name[0] != "." for one in out.iterdir()):
            raise FusionerError(f"{out} holds other files and no plan of a run: choose another --out")
        shutil.rmtree(out / ".plan", ignore_errors=True)  # of a run that was killed here
        try:
            _write(source, out, size or 256, asked)
        except OSError as error:
            raise cannot_write(out / "plan", error) from error
        return Plan(out)


def _check_same(plan: Plan, source: Source, size: int | None, asked: Mapping[str, Any]) -> None:
    now = {**asked, "shard size": size or plan.asked["shard size"]}
    for name in {**now, **plan.asked}:
        value = now.get(name)
        if plan.asked.get(name) != value:
            shown = f" ({plan.asked.get(name)} then, {value} now)" if len(f"{plan.asked.get(name)}{value}") < 60 else ""
            raise FusionerError(f"{plan.out} was begun with another {name}{shown}: choose another --out")
    digest = hashlib.sha256()
    for name in source.names(plan.out):
        digest.update(json.dumps(source.mark(name)).encode() + b"\n")
    if digest.hexdigest() != plan.sha256:
        raise FusionerError(f"{plan.out} was begun with another input than {source.text} is now: choose another --out")


def _write(source: Source, out: Path, size: int, asked: Mapping[str, Any]) -> None:
    beside = out / ".plan"
    beside.mkdir()
    digest, shards, images, start, held = hashlib.sha256(), 0, 0, 0, 0
    with (beside / "names.jsonl").open("wb") as names, (beside / "shards.bin").open("wb") as records:

        def add(container: int, count: int, start: int) -> None:
            nonlocal shards, images
            records.write(np.array((container, count, start, images), _RECORD).tobytes())
            shards, images = shards + 1, images + count

        for number, name in enumerate(source.names(out)):
            digest.update(json.dumps(source.mark(name)).encode() + b"\n")
            names.write(json.dumps(name).encode() + b"\n")
            if source.kind != "files":
                for piece in source.cut(name, size):
                    add(number, piece.count, piece.start)
                continue
            held += 1
            if held == size:
                add(_FILES, held, start)
                start, held = names.tell(), 0
        if held:
            add(_FILES, held, start)
    if not images:
        raise FusionerError(f"{source.text} holds no pictures")
    about = {"format": FORMAT, "asked": {**asked, "shard size": size}, "sha256": digest.hexdigest()}
    (beside / "plan.json").write_text(json.dumps({**about, "images": images, "shards": shards}), "utf-8")
    for path in beside.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    beside.rename(out / "plan")
