"""Filling the cache: find what is missing, see that it fits, encode it, whoever else is doing the same.

plan ──▶ claim images ──▶ read, move, squash (threads) ──▶ encode (here) ──▶ write shards (a thread)
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.cache import Shelf
from fusioner.features.locks import Claims, Presence
from fusioner.features.plan import Job, Plan
from fusioner.features.preprocess import encode, pictures
from fusioner.features.quantise import Rounding
from fusioner.features.shard import orphans, spaces
from fusioner.features.writer import Finished, ShardWriter

_POLL = 0.2  # seconds between looks at what another builder is doing


@dataclass
class Report:
    """What was done: views encoded here, found encoded by somebody else meanwhile, images that could not be read."""

    encoded: int = 0
    seconds: float = 0.0
    elsewhere: int = 0
    broken: list[str] = field(default_factory=list)
    rounding: Rounding = field(default_factory=Rounding)


class _Picture(NamedTuple):
    job: Job
    view: int
    pixels: Float[Tensor, "3 s s"]


class Builder:
    """Encodes what a plan found missing; any number may work on one folder at a time, in processes of their own.

    Args:
        batch_size: views encoded together.
        workers: threads that read and decode images ahead of the encoder.
        tick: called once for every view that is done with.
    """

    def __init__(
        self,
        shelf: Shelf,
        encoder: ImageEncoder,
        batch_size: int = 4,
        workers: int = 2,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        self.shelf, self.encoder, self.tick = shelf, encoder, tick
        self.batch_size, self.workers = max(1, batch_size), max(1, workers)
        self.report = Report()

    def run(self, todo: Plan) -> Report:
        """Do it; images that cannot be read are named in the report.

        Raises:
            FusionerError: no room, no permission, the folder is being repaired, or a broken encoder.
        """
        start, folder = time.monotonic(), self.shelf.folder
        with Presence(folder.parent) as presence:
            if presence.alone():
                sweep(folder.parent)
            presence.together()
            with Claims(folder) as claims, self._writer(claims) as writer:
                self._encode_all(todo.jobs, claims, writer)
            self.report.rounding = writer.rounding
        self.shelf.refresh()
        self.report.seconds = time.monotonic() - start
        return self.report

    def _writer(self, claims: Claims) -> ShardWriter:
        def release(written: Sequence[Finished]) -> None:
            for digest in {one.digest for one in written}:
                claims.release(digest)

        return ShardWriter(self.shelf.folder, self.shelf.space, release)

    def _encode_all(self, jobs: Sequence[Job], claims: Claims, writer: ShardWriter) -> None:
        pool, batch = ThreadPoolExecutor(self.workers, "pictures"), []
        try:
            for picture in self._pictures(jobs, claims, pool):
                if picture is not None:
                    batch.append(picture)
                if batch and (picture is None or len(batch) == self.batch_size):
                    self._encode(batch, writer)
                    batch = []
                if picture is None:
                    writer.flush()
        finally:
            pool.shutdown(cancel_futures=True)

    def _encode(self, batch: Sequence[_Picture], writer: ShardWriter) -> None:
        tokens = encode(self.encoder, torch.stack([picture.pixels for picture in batch]))
        for picture, stored in zip(batch, writer.pack(tokens), strict=True):
            writer.add(Finished(picture.job.digest, picture.view, str(picture.job.image), stored))
            self.report.encoded += 1
            self.tick()
            if picture.view == picture.job.views[-1]:  # an image's views stay together
                writer.flush_if_due()

    def _pictures(self, jobs: Sequence[Job], claims: Claims, pool: ThreadPoolExecutor) -> Iterator[_Picture | None]:
        """Pictures in the order of the jobs, some read ahead; None: encode and write all of these before going on."""
        ahead: deque[tuple[Job, Future[list[_Picture]]]] = deque()
        for job in self._claimed(jobs, claims):
            if job is not None:
                ahead.append((job, pool.submit(self._prepare, job)))
            while ahead and (job is None or len(ahead) > self.workers + self.batch_size // len(ahead[0][0].views)):
                yield from self._prepared(*ahead.popleft(), claims)
            if job is None:
                yield None
        while ahead:
            yield from self._prepared(*ahead.popleft(), claims)
        yield None

    def _prepared(self, job: Job, future: "Future[list[_Picture]]", claims: Claims) -> list[_Picture]:
        try:
            return future.result()
        except FusionerError as error:
            self.report.broken.append(str(error))
            claims.release(job.digest)
            return []

    def _prepare(self, job: Job) -> list[_Picture]:
        shown = pictures(job.image, job.digest, job.views, self.shelf.space.resolution)
        return [_Picture(job, number, pixels) for number, pixels in zip(job.views, shown, strict=True)]

    def _claimed(self, jobs: Sequence[Job], claims: Claims) -> Iterator[Job | None]:
        """Jobs nobody else works on, with what is still missing of them; None before waiting for somebody else."""
        waiting = list(jobs)
        while waiting:
            others = []
            for start in range(0, len(waiting), self.batch_size):
                lot = waiting[start : start + self.batch_size]
                mine = [job for job in lot if claims.claim(job.digest)]
                others += [job for job in lot if job not in mine]
                yield from self._still_missing(mine, claims)
            if others:
                yield None
                time.sleep(_POLL)
                self.shelf.refresh()
            waiting = [reduced for job in others if (reduced := self._reduced(job))]

    def _still_missing(self, mine: Sequence[Job], claims: Claims) -> Iterator[Job]:
        # Whoever had the claim before wrote first and let go afterwards: a look now sees all of it.
        self.shelf.refresh()
        for job in mine:
            if reduced := self._reduced(job):
                yield reduced
            else:
                claims.release(job.digest)

    def _reduced(self, job: Job) -> Job | None:
        """The job without the views that are there by now."""
        views = tuple(view for _, view in self.shelf.missing((job.digest, view) for view in job.views))
        for _ in range(len(job.views) - len(views)):
            self.report.elsewhere += 1
            self.tick()
        return replace(job, views=views) if views else None


def sweep(cache: Path) -> None:
    """Delete what builders that were killed left half written; only for who is alone in the folder."""
    for path in (path for folder in spaces(cache) for path in orphans(folder)):
        path.unlink(missing_ok=True)
