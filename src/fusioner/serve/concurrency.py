"""Limits on the bodies, requests and pixels processed at once, and cancellation when a client disconnects."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any, TypeVar

from fastapi import Request
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusioner.serve.errors import ApiError
from fusioner.serve.inference_queue import InferenceQueue
from fusioner.serve.limits import Limits

log = logging.getLogger(__name__)
T = TypeVar("T")
CHUNK_BYTES = 2**18  # of a response body passed to the connection at once
BODY_GRACE_SECONDS = 5.0  # before a request body must have arrived at this rate:
MIN_BODY_RATE = 4096  # bytes/s


class ConcurrencyLimit:
    """Counts requests in progress, from the first byte of their body to the last byte of their response."""

    def __init__(self, limits: Limits, inference: InferenceQueue) -> None:
        self.limits, self._inference = limits, inference
        self.in_progress = 0
        self.draining = False  # the server is shutting down: refuse new requests
        self._clients = Counter[str]()

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Count a request of a client address; ApiError 503 while draining, 429 if too many are in progress."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", {"Connection": "close", "Retry-After": "5"})
        own, limits = self._clients[client], self.limits
        if self.in_progress >= limits.max_requests or own >= limits.max_requests_per_client:
            number = f"{own} of your" if own >= limits.max_requests_per_client else f"{self.in_progress}"
            raise ApiError(429, f"{number} requests are in progress: try again later", self.retry_after())
        self.in_progress += 1
        self._clients[client] += 1
        try:
            yield
        finally:
            self.in_progress -= 1
            self._clients[client] -= 1
            self._clients += Counter()  # drops zeros

    def retry_after(self) -> dict[str, str]:
        """Return a Retry-After header: the estimated time until half of the waiting jobs are done."""
        seconds = self._inference.seconds_per_job * self._inference.waiting / 2
        return {"Retry-After": str(max(1, math.ceil(seconds)))}


class ConcurrencyMiddleware:
    """ASGI middleware that applies the limits on bodies, concurrency and time to every POST."""

    def __init__(self, app: ASGIApp, concurrency: ConcurrencyLimit) -> None:
        self.app, self.concurrency = app, concurrency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        limit, seconds = self.concurrency.limits.max_body_bytes, self.concurrency.limits.timeout
        too_large = ApiError(413, f"the body is over this server's limit of {limit / 1e6:g} MB")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length) > limit:
            raise too_large
        started = False
        start, received, complete = monotonic(), 0, False

        async def receive_in_time() -> Message:
            nonlocal received, complete
            allowed = start + BODY_GRACE_SECONDS + received / MIN_BODY_RATE - monotonic()
            try:
                async with asyncio.timeout(None if complete else allowed):
                    message = await receive()
            except TimeoutError as error:
                raise ApiError(408, "the body arrives too slowly: send it again", {"Connection": "close"}) from error
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            complete = not message.get("more_body")  # then the next message is a disconnect
            return message

        async def send_in_chunks(message: Message) -> None:
            """Send a body in chunks, each once the connection is ready, so that slow readers stay counted."""
            nonlocal started
            started, body = True, memoryview(message.get("body", b""))
            while len(body) > CHUNK_BYTES:
                await send({"type": "http.response.body", "body": bytes(body[:CHUNK_BYTES]), "more_body": True})
                body = body[CHUNK_BYTES:]
            await send({**message, "body": bytes(body)} if "body" in message else message)

        while self.concurrency.draining and not complete:  # closing on unread bytes would reset the connection
            await receive_in_time()
        with self.concurrency.admit((scope["client"] or ("", 0))[0]):
            try:
                async with asyncio.timeout(seconds):
                    await self.app(scope, receive_in_time, send_in_chunks)
            except TimeoutError as error:
                if started:
                    log.warning("a client did not read its response within %g s", seconds)
                    raise ClientDisconnect from error
                message = f"no answer within {seconds:g} s: try later, with fewer labels or a smaller image"
                raise ApiError(503, message, self.concurrency.retry_after()) from error


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, or cancel it and raise ClientDisconnect; the request body must have been read before."""

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = task, disconnect = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        task.cancel()
        disconnect.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PixelSemaphore:
    """Limits the pixels of decoded images in memory, first come, first served."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._released, self._order = asyncio.Condition(), asyncio.Lock()

    @asynccontextmanager
    async def acquire(self, pixels: int) -> AsyncIterator[None]:
        """Hold so many pixels (at most the total) once they are free."""
        pixels = min(pixels, self._total)
        async with self._order, self._released:  # only the first in line waits for the condition
            await self._released.wait_for(lambda: self._used + pixels <= self._total)
            self._used += pixels
        try:
            yield
        finally:
            async with self._released:
                self._used -= pixels
                self._released.notify()
