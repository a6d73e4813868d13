"""From a command line's wishes to a running server, and its orderly end."""

import asyncio
import logging
import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from fusioner.base_segmenter import BaseSegmenter
from fusioner.errors import FusionerError
from fusioner.serve.app import create_app
from fusioner.serve.limits import Limits
from fusioner.serve.security import Access

GRACE = 10  # seconds that clients have to read their last answer


class Server(uvicorn.Server):
    """uvicorn that on SIGTERM or SIGINT first finishes what the service accepted, telling newcomers 503 meanwhile."""

    def __init__(self, load: Callable[[], BaseSegmenter], limits: Limits, access: Access) -> None:
        app = create_app(load, limits, access, self.fail)
        super().__init__(
            uvicorn.Config(
                app,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self.service = app.state.service
        self.failure: BaseException | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once."""
        if self.service.queue.draining:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would show a traceback for every request cut off
        self.service.queue.draining = True

    def fail(self, error: BaseException) -> None:
        """The model cannot be loaded: end, and let `serve` raise the reason."""
        self.failure, self.should_exit = error, True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn asks ten times a second whether to end."""
        if self.service.queue.draining and not self.service.queue.in_progress:
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(
    load: Callable[[], BaseSegmenter],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    key: str | None = None,
    origins: tuple[str, ...] = (),
) -> tuple[Server, socket.socket, str]:
    """A server, the socket it will listen on, and its address.

    Raises:
        FusionerError: the address is in use or not this machine's.
    """
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    return Server(load, limits or Limits(), Access(key, origins, host)), listener, address


def serve(load: Callable[[], BaseSegmenter], *, open_browser: bool = False, **options: Any) -> None:
    """Serve until a signal comes; `options` are those of `make_server`.

    Raises:
        FusionerError: the address is in use or not this machine's, or the model cannot be loaded.
        KeyboardInterrupt: a second signal came before the first had its effect.
    """
    server, listener, address = make_server(load, **options)
    print(f"Fusioner serves at {address} (Ctrl-C ends it)", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with listener:
        asyncio.run(server.serve([listener]))
    if server.failure:
        raise server.failure
    if server.force_exit:
        raise KeyboardInterrupt


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:  # asyncio and getaddrinfo number them differently
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise FusionerError(f"cannot listen on {host} port {port}: {reason}") from error
