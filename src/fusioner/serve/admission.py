"""How many requests are in progress, for how long, and what happens to one whose client left."""

import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fusioner.serve.engine import Engine
from fusioner.serve.errors import ApiError
from fusioner.serve.limits import Limits

log = logging.getLogger(__name__)
T = TypeVar("T")
PIECE = 2**18  # bytes of an answer handed to the connection at once


class Queue:
    """The requests in progress, from the first byte of their body to the last of their answer.

    Attributes:
        draining: newcomers are refused because the server shuts down.
    """

    def __init__(self, limits: Limits, engine: Engine) -> None:
        self.limits, self._engine = limits, engine
        self.in_progress, self.draining = 0, False

    def enter(self) -> None:
        """Take a place; ApiError 503 while draining, 429 when all are taken."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", {"Connection": "close", "Retry-After": "5"})
        if self.in_progress >= self.limits.requests:
            raise ApiError(429, f"{self.in_progress} requests are in progress: try again later", self.later())
        self.in_progress += 1

    def leave(self) -> None:
        """Give the place back."""
        self.in_progress -= 1

    def later(self) -> dict[str, str]:
        """Retry-After: when half of what waits for the model will be done, as fast as it is at present."""
        return {"Retry-After": str(max(1, math.ceil(self._engine.service * self._engine.waiting / 2)))}


class Admission:
    """ASGI middleware around every POST: a place in the queue, a time limit."""

    def __init__(self, app: ASGIApp, queue: Queue) -> None:
        self.app, self.queue = app, queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        started = False

        async def in_pieces(message: Message) -> None:
            """Each piece waits until the connection has room: whoever does not read keeps the place."""
            nonlocal started
            started, body = True, memoryview(message.get("body", b""))
            while len(body) > PIECE:
                await send({"type": "http.response.body", "body": bytes(body[:PIECE]), "more_body": True})
                body = body[PIECE:]
            await send({**message, "body": bytes(body)} if "body" in message else message)

        self.queue.enter()
        seconds = self.queue.limits.timeout
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, receive, in_pieces)
        except TimeoutError as error:
            if started:
                log.warning("a client did not read its answer within %g s", seconds)
                raise ClientDisconnect from error
            message = f"no answer within {seconds:g} s: try later, with fewer labels or a smaller image"
            raise ApiError(503, message, self.queue.later()) from error
        finally:
            self.queue.leave()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (call it once the body is read).

    Raises:
        ClientDisconnect: it left.
    """

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
