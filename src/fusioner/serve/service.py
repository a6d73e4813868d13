"""What the routes do: decode, encode, ask, answer."""

import asyncio
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Response

from fusioner.base_segmenter import BaseSegmenter, Resolution
from fusioner.image import read_image
from fusioner.serve.admission import Queue
from fusioner.serve.engine import Engine
from fusioner.serve.limits import Limits
from fusioner.serve.metrics import Metrics
from fusioner.serve.requests import LOGITS, Question, check_question
from fusioner.serve.responses import check_size, file_answer, logits_answer
from fusioner.serve.store import Kept, Store
from fusioner.serve.uploads import Budget, check_picture

T = TypeVar("T")


class Service:
    """All that the routes share; nothing of it outlives the process."""

    def __init__(
        self, load: Callable[[], BaseSegmenter], limits: Limits, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.limits = limits
        self.metrics = Metrics()
        self.engine = Engine(load, limits.batch, self.metrics.batches.observe, on_failure)
        self.queue = Queue(limits, self.engine)
        self.store = Store(limits.cache)
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
        return self.engine.ready.is_set() and not self.queue.draining

    async def encode(self, content: bytes, name: str, resolution: Resolution) -> Kept:
        """Decode and encode an uploaded image."""
        pixels = await self._thread(check_picture, content, self.limits.pixels)
        async with self._pixels.spend(pixels):
            rgb = await self._thread(read_image, content)
            return Kept(await self.engine.encode(rgb, resolution), name)

    def kept(self, id: str) -> Kept:
        """An image sent before; ApiError 404 when there is none."""
        self.metrics.lookups.labels(id in self.store).inc()
        return self.store.get(id)

    async def answer(self, kept: Kept, question: Question) -> Response:
        """Find the labels and write the answer in the format asked for."""
        labels, size = check_question(question, self.limits), kept.encoded.size
        check_size(question.format, len(labels), size)
        logits = await self.engine.logits(kept.encoded, labels)
        model = await self.model()
        if question.format == LOGITS:
            content = await self._thread(logits_answer, logits, labels, size, model.card.threshold)
            return Response(content, media_type="application/json")

        def write() -> tuple[bytes, str, str]:
            result = model.decide(kept.encoded, labels, logits, question.threshold, question.background)
            result.name = kept.name
            return file_answer(result, question.format, PurePath(kept.name).stem or "image")

        async with self._pixels.spend(math.prod(size)):
            content, media_type, name = await self._thread(write)
        disposition = f"inline; filename*=UTF-8''{quote(name)}"
        return Response(content, media_type=media_type, headers={"Content-Disposition": disposition})

    async def model(self) -> BaseSegmenter:
        """The segmenter, once it is loaded."""
        await self.engine.ready.wait()
        assert self.engine.segmenter is not None
        return self.engine.segmenter

    async def _thread(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
