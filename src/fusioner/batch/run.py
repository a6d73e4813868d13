"""Run all shards of a plan with one of the engines: the job of their workers, and the events that they report."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fusioner.batch.plan import Plan
from fusioner.batch.sources import Source
from fusioner.options import DEFAULT_OPTIONS, InferenceOptions

POLL_SECONDS = 1.0  # while other runs work on the remaining shards


@dataclass(frozen=True)
class BatchJob:
    """Everything a worker needs, as values that can be sent to another machine; `run` names this start of the command.

    `model` are arguments of `fusioner.load`. A worker has `threads` CPU threads, encodes `batch_size` images at once
    and writes files per image in the `formats` "mask" (an indexed PNG) and "yolo" (see `batch.yolo`).
    """

    out: Path
    source: Source
    run: str
    labels: tuple[str, ...]
    options: InferenceOptions = DEFAULT_OPTIONS
    model: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[str, ...] = ()
    threads: int = 1
    device: str = "cpu"
    batch_size: int = 1


class Event(NamedTuple):
    """Images of a shard that a worker has done, those with errors and with notes, and its peak memory in bytes.

    A finished shard has 0 images if it is done elsewhere; of an unfinished one notes and memory are not counted.
    """

    shard: int
    images: int
    errors: int
    notes: int = 0
    memory: int = 0
    finished: bool = False


Engine: TypeAlias = Callable[[Sequence[int]], Iterator[Event]]
"""Segments shards and yields an event for each as it ends, and possibly others in between."""


@dataclass
class RunStats:
    """Counts of images."""

    total: int
    before: int  # done by earlier runs
    elsewhere: int = 0  # done by other runs meanwhile
    images: int = 0  # done by this run, in finished shards, as errors and notes
    errors: int = 0
    notes: int = 0  # images that were read differently
    memory: int = 0  # bytes, peak of a worker
    unfinished: dict[int, Event] = field(default_factory=dict)  # by shard
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time since the run began."""
        return time.monotonic() - self.begun

    @property
    def done_here(self) -> int:
        """Images done by this run, also in unfinished shards."""
        return self.images + sum(part.images for part in self.unfinished.values())

    @property
    def done(self) -> int:
        """Return the number of images done, by this run and by others."""
        return self.before + self.elsewhere + self.done_here

    def add(self, event: Event) -> None:
        """Count an event of an engine."""
        if not event.finished:
            self.unfinished[event.shard] = event
            return
        self.unfinished.pop(event.shard, None)
        self.images, self.errors = self.images + event.images, self.errors + event.errors
        self.memory, self.notes = max(self.memory, event.memory), self.notes + event.notes


def run_shards(plan: Plan, engine: Engine, on_progress: Callable[[RunStats], object], max_shards: int) -> RunStats:
    """Segment all shards without results; other runs may work on the same plan at the same time.

    `on_progress` is called after every event; `max_shards` are passed to the engine at a time.
    """
    done = plan.done()
    stats = RunStats(plan.images, plan.count(done))
    shards = np.flatnonzero(~done)
    while len(shards):
        for event in engine(shards[:max_shards].tolist()):
            stats.add(event)
            on_progress(stats)
        while True:
            done = plan.done()
            stats.elsewhere = plan.count(done) - stats.before - stats.images
            on_progress(stats)
            missing = np.flatnonzero(~done)
            shards = plan.unlocked(missing)
            if len(shards) or not len(missing):
                break
            time.sleep(POLL_SECONDS)
    for folder in ("shards", "masks", "images", "labels"):
        for file in plan.out.glob(f"{folder}/*/.part-*"):
            file.unlink(missing_ok=True)  # of processes that were killed
    shutil.rmtree(plan.out / ".attempts", ignore_errors=True)
    return stats
