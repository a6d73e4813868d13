"""A request's way: let in, read, decode, encode, ask, answer; with a place in the queue, a time limit and an end."""

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from fusioner.inference.image import read_image
from fusioner.inference.segmentation import Segmentation
from fusioner.inference.segmenter import Resolution, Segmenter
from fusioner.serve.answers import as_json, file_answer, logits_answer
from fusioner.serve.bodies import LOGITS, Question, check_question
from fusioner.serve.engine import Engine
from fusioner.serve.metrics import Metrics
from fusioner.serve.pictures import Budget, count_pixels
from fusioner.serve.problems import ApiError
from fusioner.serve.settings import Limits
from fusioner.serve.store import Kept, Store

log = logging.getLogger(__name__)
T = TypeVar("T")


class Service:
    """All that the routes share."""

    def __init__(
        self, load: Callable[[], Segmenter], limits: Limits, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.engine = Engine(load, limits.batch, self.metrics.batches.observe, on_failure)
        self.store = Store(limits.cache)
        self.draining = False
        self.in_progress = 0
        self._pixels = Budget(2 * limits.pixels)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "fusioner-pictures")
        self.metrics.watch(self)

    def start(self) -> None:
        """Load the model in the background."""
        self.engine.start()

    def close(self) -> None:
        """End the threads."""
        self.engine.close()
        self._threads.shutdown()

    @property
    def ready(self) -> bool:
        """The model is loaded and work is accepted."""
        return self.engine.ready.is_set() and not self.draining

    async def run(self, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        """Let `work` answer the request.

        Raises:
            ApiError: 503 while shutting down or past the time limit, 429 when too many are in progress.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", {"Connection": "close", "Retry-After": "5"})
        if self.in_progress >= self.limits.requests:
            raise self._busy()
        self.in_progress += 1
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await work()
        except TimeoutError as error:
            message = f"no answer within {self.limits.timeout:g} s: try later, with fewer labels or a smaller image"
            raise ApiError(503, message, self._later()) from error
        finally:
            self.in_progress -= 1

    def _busy(self) -> ApiError:
        return ApiError(429, f"{self.in_progress} requests are in progress: try again later", self._later())

    def _later(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self.engine.service * self.engine.waiting / 2)))}

    async def encode(self, content: bytes, name: str, resolution: Resolution) -> Kept:
        """Decode and encode an uploaded image."""
        pixels = await self._thread(count_pixels, content, self.limits.pixels)
        async with self._pixels.spend(pixels):
            rgb = await self._thread(read_image, content)
            return Kept(await self.engine.encode(rgb, resolution), name)

    async def answer(self, kept: Kept, question: Question) -> Response:
        """Find the labels and write the answer in the format asked for."""
        labels = check_question(question, self.limits)
        logits = await self.engine.logits(kept.encoded, labels)
        own = (await self.model()).card.threshold
        if question.format == LOGITS:
            content = await self._thread(logits_answer, logits, labels, kept.encoded.size, own)
            return Response(await self._thread(as_json, content), media_type="application/json")
        threshold = own if question.threshold is None else question.threshold

        def write() -> tuple[bytes, str, str]:
            result = Segmentation.from_logits(
                kept.encoded.image,
                labels,
                logits,
                threshold=threshold,
                background=question.background,
                name=kept.name,
            )
            return file_answer(result, question.format, PurePath(kept.name).stem or "image")

        async with self._pixels.spend(math.prod(kept.encoded.size)):
            content, media_type, name = await self._thread(write)
        return Response(content, media_type=media_type, headers={"Content-Disposition": _disposition(name)})

    async def model(self) -> Segmenter:
        """The segmenter, once it is loaded."""
        await self.engine.ready.wait()
        assert self.engine.segmenter is not None
        return self.engine.segmenter

    async def _thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _disposition(name: str) -> str:
    return f"inline; filename*=UTF-8''{quote(name, errors='replace')}"


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (call it once the body is read)."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.create_task(work), asyncio.create_task(watch())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
