"""One thread that owns the Segmenter; requests hand it jobs and wait.

A turn of the thread answers every question that waits, then encodes the images that wait, as many as one forward takes.
Nothing waits for a batch to fill: it is what came in during the turn before. Either kind gets its turn, so neither
starves the other.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.backend import Array
from fusioner.base_segmenter import BaseSegmenter, Resolution
from fusioner.encoded_image import EncodedImage
from fusioner.errors import FusionerError

log = logging.getLogger(__name__)


class AbandonedError(Exception):
    """Nobody waits for this job any longer."""


@dataclass(eq=False)
class Job:
    """What the thread is asked to do; `abandoned` once nobody waits for its result."""

    future: Future[Any] = field(default_factory=Future, init=False)
    abandoned: bool = field(default=False, init=False)

    def on_progress(self, done: int, total: int) -> None:
        """Stops work on windows that nobody waits for."""
        if self.abandoned:
            raise AbandonedError


@dataclass(eq=False)
class Encode(Job):
    """Encode an image."""

    image: UInt8[np.ndarray, "h w 3"]
    resolution: Resolution


@dataclass(eq=False)
class Ask(Job):
    """Find labels in an encoded image."""

    encoded: EncodedImage
    labels: Sequence[str]


class Engine:
    """The queue and its thread.

    Attributes:
        segmenter: None until it is loaded.
        service: seconds a job takes at present (moving average); what Retry-After is reckoned from.
    """

    def __init__(
        self,
        load: Callable[[], BaseSegmenter],
        batch: int,
        on_batch: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        """`on_batch` hears the size of every batch, `on_failure` why the model could not be loaded."""
        self._load, self._batch = load, batch
        self._on_batch, self._on_failure = on_batch, on_failure
        self._encodes: deque[Encode] = deque()
        self._asks: deque[Ask] = deque()
        self._wake, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="fusioner-engine", daemon=True)
        self.ready = asyncio.Event()
        self.segmenter: BaseSegmenter | None = None
        self.service = 1.0

    def start(self) -> None:
        """Load the model in the thread, then serve; call it in the event loop that will await the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """End the thread after what it was given."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._encodes) + len(self._asks)

    async def encode(self, image: UInt8[np.ndarray, "h w 3"], resolution: Resolution) -> EncodedImage:
        """As `Segmenter.encode`; cancelling the wait drops the job, or stops it at the next window."""
        return await self._wait(Encode(image, resolution), self._encodes)

    async def logits(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[Array, "k h w"]:
        """As `Segmenter.own_logits`."""
        return await self._wait(Ask(encoded, labels), self._asks)

    async def _wait(self, job: Any, queue: deque[Any]) -> Any:
        with self._wake:
            queue.append(job)
            self._wake.notify()
        try:
            return await asyncio.wrap_future(job.future)
        finally:
            job.abandoned = True

    def _run(self) -> None:
        try:
            self.segmenter = self._load()
        except BaseException as error:
            self._on_failure(error)
            return
        self._loop.call_soon_threadsafe(self.ready.set)
        while self._turn(self.segmenter):
            pass

    def _turn(self, segmenter: BaseSegmenter) -> bool:
        with self._wake:
            self._wake.wait_for(lambda: self._encodes or self._asks or self._closed)
            if not self._encodes and not self._asks:
                return False
            asks = [self._asks.popleft() for _ in range(len(self._asks))]
        for ask in asks:
            if ask.future.set_running_or_notify_cancel():
                self._finish([ask], lambda ask=ask: [segmenter.own_logits(ask.encoded, ask.labels)])
        self._encode(segmenter, self._next_batch())
        return True

    def _next_batch(self) -> list[Encode]:
        """The images longest waiting; one at native resolution goes alone."""
        batch: list[Encode] = []
        while self._encodes and len(batch) < self._batch:
            if batch and "native" in (batch[0].resolution, self._encodes[0].resolution):
                break
            job = self._encodes.popleft()
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
        return batch

    def _encode(self, segmenter: BaseSegmenter, batch: list[Encode]) -> None:
        if not batch:
            return
        self._on_batch(len(batch))
        if len(batch) > 1 and self._finish(batch, lambda: segmenter.encode_many([job.image for job in batch])):
            return
        for job in batch:
            self._finish([job], lambda job=job: [segmenter.encode(job.image, job.resolution, job.on_progress)])

    def _finish(self, jobs: Sequence[Job], work: Callable[[], Sequence[Any]]) -> bool:
        """Do the work of some jobs and hand the results out; no error ends the thread.

        False: what failed was a batch, whose jobs are still to be done one by one.
        """
        start = monotonic()
        try:
            for job, result in zip(jobs, work(), strict=True):
                job.future.set_result(result)
        except BaseException as error:
            if not isinstance(error, FusionerError | AbandonedError):
                log.exception("a job failed")
            if len(jobs) > 1:
                return False
            jobs[0].future.set_exception(error)
        self.service += 0.2 * ((monotonic() - start) / len(jobs) - self.service)
        return True
