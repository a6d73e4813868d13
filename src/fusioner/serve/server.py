"""Run the application with uvicorn until a signal, and shut down gracefully."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from time import monotonic
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn

from fusioner.errors import FusionerError
from fusioner.segmenter import Segmenter
from fusioner.serve.app import create_app
from fusioner.serve.label_studio import LabelStudio
from fusioner.serve.limits import Limits
from fusioner.serve.security import Access

GRACE_SECONDS = 10  # for clients to read their last response
HEADER_SECONDS = 10.0  # for clients to send the headers of a request


class Server(uvicorn.Server):
    """uvicorn that finishes the accepted requests on SIGTERM or SIGINT and answers new ones with 503 meanwhile."""

    def __init__(
        self,
        load: Callable[[], Segmenter],
        access: Access = Access(),
        *,
        port: int = 8000,
        limits: Limits = Limits(),
        label_studio: LabelStudio | None = None,
    ) -> None:
        """Listen on `port` (0: a free one); FusionerError if the address is in use or not one of this machine."""
        host = access.host
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self.listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:  # asyncio and getaddrinfo use different error numbers
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            raise FusionerError(f"cannot listen on {host} port {port}: {reason}") from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.listener.getsockname()[1]}"
        app = create_app(load, limits, access, label_studio)
        config = uvicorn.Config(
            app,
            log_level=logging.WARNING,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        super().__init__(config)
        self.service = app.state.service
        self.service.inference.on_failure = lambda error: None  # `run_until_signal` raises it
        self._without_request: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    def run_until_signal(self) -> None:
        """Serve until a signal; raise why the model cannot be loaded, and KeyboardInterrupt for a second signal."""
        with self.listener:
            asyncio.run(self.serve([self.listener]))
        if self.service.inference.failure:
            raise self.service.inference.failure
        if self.force_exit:
            raise KeyboardInterrupt

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, exit immediately on the second."""
        if self.service.concurrency.draining:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would log a traceback for every cancelled request
        self.service.concurrency.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Exit once drained or if the model cannot be loaded; uvicorn calls this ten times a second."""
        drained = self.service.concurrency.draining and not self.service.concurrency.in_progress
        if drained or self.service.inference.failure:
            self.should_exit = True
        self._close_slow_connections()
        return await super().on_tick(counter)

    def _close_slow_connections(self) -> None:
        """Close connections whose next request has not sent all headers in time."""
        for connection in list(self.server_state.connections):
            last = getattr(connection, "cycle", None)  # the last request whose headers are complete
            if last and not last.response_complete:
                self._without_request.pop(connection, None)
                continue
            before, since = self._without_request.get(connection, (id(last), monotonic()))
            if before != id(last):  # it sent one meanwhile
                since = monotonic()
            self._without_request[connection] = id(last), since
            if monotonic() - since > HEADER_SECONDS:
                connection.transport.close()
