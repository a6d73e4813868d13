"""Real servers on free ports, with the toy model behind uvicorn in a thread of the test process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from fusioner.segmenter import Segmenter
    from fusioner.serve.server import Server

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def photo() -> bytes:
    """Return a JPEG of 451 x 300 pixels."""
    return (SAMPLES / "chelsea.jpg").read_bytes()


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for a condition."""
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "timed out"
        sleep(0.005)


class Running:
    """A server, its service, and a client that is connected over TCP.

    Attributes:
        gate: while it is closed (cleared), the image encoder waits before every forward.
        at_gate: the encoder is waiting.
        encoder: the toy image encoder; `calls` counts its forwards.
    """

    def __init__(self, server: "Server", thread: threading.Thread) -> None:
        self.server, self.service, self.address, self.thread = server, server.service, server.url, thread
        self.http = httpx.Client(base_url=server.url, timeout=60)
        self.gate = threading.Event()
        self.gate.set()
        self._background = ThreadPoolExecutor(32)
        until(lambda: self.service.inference.segmenter)
        self.encoder: Any = self.service.inference.segmenter.image_encoder
        self.encoder.register_forward_pre_hook(self._stop_at_gate)
        self.at_gate = False

    def _stop_at_gate(self, *_: Any) -> None:
        self.at_gate = not self.gate.is_set()
        self.gate.wait(30)
        self.at_gate = False

    def later(self, method: str, path: str, **content: Any) -> Any:
        """Send a request in the background on a new connection; return the future of its response."""
        return self._background.submit(httpx.request, method, self.address + path, timeout=60, **content)

    @property
    def busy(self) -> int:
        """Number of requests in progress."""
        return self.service.concurrency.in_progress

    def stop(self) -> None:
        """Stop the server and assert that its thread ends."""
        self.gate.set()
        self._background.shutdown()
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def start_server(make_tiny_segmenter: "Callable[..., Segmenter]") -> "Iterator[Callable[..., Running]]":
    """Return `start(limits=..., key=..., origins=..., host=...)`; its servers stop at the end of the module."""
    from fusioner.serve.security import Access
    from fusioner.serve.server import Server

    started: list[Running] = []

    def start(load: "Callable[[], Segmenter]" = make_tiny_segmenter, **options: Any) -> Running:
        access = Access(**{name: options.pop(name) for name in Access.__dataclass_fields__ if name in options})
        server = Server(load, access, port=0, **options)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([server.listener])))
        thread.start()
        started.append(Running(server, thread))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture(scope="module")
def server(start_server: "Callable[..., Running]") -> Running:
    """Start a server with default options."""
    return start_server()
