"""One thread owns the segmenter; requests submit jobs to it and wait.

In each turn the thread computes the logits of all waiting queries and then encodes the waiting images, as many as fit
into one batch. It never waits for a batch to fill: a batch is what arrived during the previous turn.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions, Mode
from fusioner.segmenter import EncodedImage, OnProgress, Segmenter
from fusioner.serve.errors import ApiError

log = logging.getLogger(__name__)


class AbandonedError(Exception):
    """The request of the job was cancelled."""


@dataclass(eq=False, kw_only=True)
class Job:
    """Unit of work of the inference thread."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


@dataclass(eq=False, kw_only=True)
class EncodeJob(Job):
    """Encode an image, by `work` or in a batch with others."""

    image: UInt8[np.ndarray, "h w 3"]
    options: InferenceOptions


class InferenceQueue:
    """The queue and its thread."""

    def __init__(self, load: Callable[[], Segmenter], batch_size: int | None, on_batch: Callable[[int], None]) -> None:
        """`on_batch` is called with the size of every batch; `batch_size` defaults to the network's."""
        self._load, self._batch_size, self._on_batch = load, batch_size, on_batch
        self._encodes: deque[EncodeJob] = deque()
        self._queries: deque[Job] = deque()
        self._turns = SimpleQueue[bool]()  # one per job; False ends the thread
        self._thread = threading.Thread(target=self._run, name="fusioner-inference", daemon=True)
        self._loaded: Future[None] = Future()
        self._loaded.set_running_or_notify_cancel()  # a request that stops waiting cannot cancel it
        self.segmenter: Segmenter | None = None  # until it is loaded
        self.failure: BaseException | None = None  # why it could not be loaded, with which on_failure is called
        self.on_failure: Callable[[BaseException], object] = partial(log.exception, "the model cannot be loaded: %s")
        self.seconds_per_job = 1.0  # moving average

    def start(self) -> None:
        """Load the model in the thread, then process jobs."""
        self._thread.start()

    def close(self) -> None:
        """Process the submitted jobs, then end the thread."""
        self._turns.put(False)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Number of waiting jobs."""
        return len(self._encodes) + len(self._queries)

    async def loaded(self) -> Segmenter:
        """Wait for the segmenter; ApiError 503 if it could not be loaded."""
        await asyncio.wrap_future(self._loaded)
        if self.segmenter is None:
            raise ApiError(503, f"the model cannot be loaded: {self.failure}")
        return self.segmenter

    async def encode(self, image: UInt8[np.ndarray, "h w 3"], mode: Mode | None, report: OnProgress) -> EncodedImage:
        """Encode an image as `Segmenter.encode` does; if cancelled, the job is dropped or stops at the next window."""
        segmenter = await self.loaded()
        options = segmenter.options
        if mode == "slide":  # the server's defaults of other modes do not apply
            options = replace(options, mode=mode, tta_scales=(1.0,), guided_filter=None)
        elif mode:
            options = replace(options, mode=mode, window=None, stride=None)
        options, abandoned = segmenter.resolve(options), threading.Event()

        def on_progress(done: int, total: int) -> None:
            if abandoned.is_set():
                raise AbandonedError
            report(done, total)

        work = partial(segmenter.encode, image, options, on_progress=on_progress)
        try:
            return await self._submit(EncodeJob(work=work, image=image, options=options), self._encodes)
        finally:
            abandoned.set()

    async def logits(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Compute logits as `Segmenter.low_res_logits` does."""
        segmenter = await self.loaded()
        return await self._submit(Job(work=partial(segmenter.low_res_logits, encoded, labels)), self._queries)

    async def _submit(self, job: Any, queue: deque[Any]) -> Any:
        queue.append(job)
        self._turns.put(True)
        return await asyncio.wrap_future(job.future)

    def _run(self) -> None:
        try:
            self.segmenter = self._load()
        except BaseException as error:
            self.failure = error
            self.on_failure(error)
            return
        finally:
            self._loaded.set_result(None)
        for _ in iter(self._turns.get, False):
            self._turn(self.segmenter)

    def _turn(self, segmenter: Segmenter) -> None:
        for job in [self._queries.popleft() for _ in range(len(self._queries))]:
            if job.future.set_running_or_notify_cancel():
                self._finish([job], lambda job=job: [job.work()])
        batch = self._next_batch(self._batch_size or segmenter.network.window_batch_size)
        if batch:
            self._on_batch(len(batch))
        if len(batch) > 1:
            images, options = [job.image for job in batch], batch[0].options
            if self._finish(batch, lambda: segmenter.encode_batch(images, options)):
                return
        for job in batch:
            self._finish([job], lambda job=job: [job.work()])

    def _next_batch(self, size: int) -> list[EncodeJob]:
        """Take the image that has waited longest; in mode whole, where images share a forward pass, several."""
        batch: list[EncodeJob] = []
        while self._encodes and len(batch) < size:
            if batch and not batch[0].options.mode == self._encodes[0].options.mode == "whole":
                break
            job = self._encodes.popleft()
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
        return batch

    def _finish(self, jobs: Sequence[Job], work: Callable[[], Sequence[Any]]) -> bool:
        """Run the work of jobs and pass on results or the error; False if a batch failed, to be run one by one."""
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
        self.seconds_per_job += 0.2 * ((monotonic() - start) / len(jobs) - self.seconds_per_job)
        return True
