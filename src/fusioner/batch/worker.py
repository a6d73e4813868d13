"""One shard from pictures to a file of results: what every worker does, whichever engine runs it.

read and decode (threads, a few ahead) ──▶ segment (here) ──▶ rows ──▶ one Parquet file, renamed into place
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fusioner.batch.crash_log import Attempt
from fusioner.batch.parquet import error_row, good_row, write_rows
from fusioner.batch.plan import Plan, Shard
from fusioner.batch.sources import Picture, Source
from fusioner.errors import FusionerError
from fusioner.image import read_image
from fusioner.io import FileLocks, atomic_write
from fusioner.loading import load
from fusioner.prefetch import map_ahead
from fusioner.segmentation import Segmentation
from fusioner.segmenter import Resolution

Tick = Callable[[int, int], object]
"""Called with (images of the shard done, errors among them) now and then; what it raises ends the work."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know, in plain values that travel to another process or machine.

    Attributes:
        out, source, run: the run's folder, its input, and a name of its own for every start of the command.
        labels, model, threshold, background, resolution, scales, refine, templates: as for `fusioner predict`.
        masks: write a PNG an image.
        threads: that a worker computes with; device: of a worker, "auto" takes what it is shown.
        batch: images encoded in one forward.
    """

    out: Path
    source: Source
    run: str
    labels: tuple[str, ...]
    model: Path | None = None
    threshold: float | None = None
    background: bool = True
    resolution: Resolution = "fast"
    scales: tuple[float, ...] = (1.0,)
    refine: bool | None = None
    templates: tuple[str, ...] | None = None
    masks: bool = False
    threads: int = 1
    device: str = "cpu"
    batch: int = 1


@dataclass(frozen=True)
class Done:
    """How the work on a shard ended: its images and the errors among them; 0 images: somebody else has it.

    Attributes:
        memory: most that this process has held so far, bytes.
    """

    shard: int
    images: int
    errors: int
    seconds: float
    memory: int


class Under(NamedTuple):
    """How far the work on a shard is."""

    shard: int
    images: int
    errors: int


class Worker:
    """A loaded model that does shards, one after another."""

    def __init__(self, job: Job) -> None:
        """Raises FusionerError when the model cannot be loaded."""
        torch.set_num_threads(job.threads)
        self.job, self.plan, self.locks = job, Plan(job.out), FileLocks(job.out / ".locks")
        self.segmenter = load(job.model, job.device, job.templates).looking(job.scales, job.refine)
        self.segmenter.embed(job.labels)

    def do(self, number: int, tick: Tick = lambda images, errors: None) -> Done:
        """Do a shard, unless it is done or somebody else is at it.

        Raises:
            FusionerError: the results cannot be written.
        """
        begun = time.monotonic()
        if not self.locks.acquire(number):
            return Done(number, 0, 0, 0.0, _memory())
        try:
            rows: list[dict[str, Any]] = []
            if not self.plan.result(number).exists():
                rows = self._do(self.plan[number], tick)
        finally:
            self.locks.release(number)
        return Done(number, len(rows), _errors(rows), time.monotonic() - begun, _memory())

    def _do(self, shard: Shard, tick: Tick) -> list[dict[str, Any]]:
        with Attempt(self.job.out, shard.number, self.job.run) as attempt:
            ahead = 0 if attempt.careful else 2 * self.job.batch
            pictures = enumerate(self.plan.pictures(shard, self.job.source), shard.first)
            rows: list[dict[str, Any]] = []
            with map_ahead(lambda one: self._open(*one, attempt), pictures, ahead) as opened:
                for some in _batches(opened, 1 if attempt.careful else self.job.batch):
                    rows += self._rows(some, shard)
                    tick(len(rows), _errors(rows))
            write_rows(self.plan.result(shard.number), rows, {"labels": self.job.labels, **self.plan.asked})
            return rows

    def _open(self, index: int, picture: Picture, attempt: Attempt) -> tuple[int, str, "np.ndarray | Exception"]:
        if index in attempt.fatal:
            reason = "twice the process died at work on this image: it crashes a decoder or fills the memory"
            return index, picture.name, FusionerError(reason)
        attempt.at(index)
        try:
            return index, picture.name, _decoded(picture)
        except Exception as error:
            return index, picture.name, error

    def _rows(self, some: list[tuple[int, str, "np.ndarray | Exception"]], shard: Shard) -> Iterator[dict[str, Any]]:
        good = [one for _, _, one in some if isinstance(one, np.ndarray)]
        results = iter(self._segment(good))
        for index, name, one in some:
            result = one if isinstance(one, Exception) else next(results)
            if isinstance(result, Exception):
                told = str(result) if isinstance(result, FusionerError) else f"{type(result).__name__}: {result}"
                yield error_row(index, name, shard.container, told)
            else:
                yield good_row(index, name, shard.container, result, self._mask(index, result))

    def _segment(self, images: list[np.ndarray]) -> list[Segmentation | Exception]:
        """One answer or error an image; where a batch fails, its images are tried one by one."""
        job, segmenter = self.job, self.segmenter
        try:
            kept: dict[str, Any] = {"threshold": job.threshold, "background": job.background}
            if len(images) == 1 or job.resolution == "native":
                return [segmenter(one, job.labels, resolution=job.resolution, **kept) for one in images]
            encoded = segmenter.encode_many(images) if images else []
            answers = ((one, segmenter.own_logits(one, job.labels)) for one in encoded)
            return [segmenter.decide(one, job.labels, logits, **kept) for one, logits in answers]
        except Exception as error:  # whatever it is, the other images of the input are to be done
            return [error] if len(images) == 1 else [self._segment([one])[0] for one in images]

    def _mask(self, index: int, result: Segmentation) -> str | None:
        if not self.job.masks:
            return None
        name = f"masks/{index // 10_000:06}/{index:012}.png"
        with atomic_write(self.job.out / name) as beside:
            beside.write_bytes(result.to_bytes("mask"))
        return name


def _decoded(picture: Picture) -> np.ndarray:
    if isinstance(picture.content, FusionerError):
        raise picture.content
    if isinstance(picture.content, bytes):
        return read_image(picture.content, picture.name)
    return read_image(picture.content)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    whole = iter(items)
    while some := list(islice(whole, size)):
        yield some


def _errors(rows: list[dict[str, Any]]) -> int:
    return sum("error" in row for row in rows)


def _memory() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
