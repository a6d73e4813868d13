"""Real servers on free ports: the toy model behind uvicorn, in a thread of the test's own process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from fusioner.inference.segmenter import Segmenter
    from fusioner.serve.run import Server

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A JPEG of 451 x 300 pixels."""
    return (SAMPLES / "chelsea.jpg").read_bytes()


class Running:
    """A server, its service and a client; `service` may be looked at, the client speaks to it over TCP."""

    def __init__(self, server: "Server", address: str) -> None:
        self.server, self.service, self.address = server, server.service, address
        self.http = httpx.Client(base_url=address, timeout=30)


@pytest.fixture(scope="module")
def start_server(make_tiny_segmenter: "Callable[..., Segmenter]") -> "Iterator[Callable[..., Running]]":
    """`start_server(load=..., limits=..., key=..., origins=..., host=...)`: stopped at the module's end."""
    from fusioner.serve.run import make_server

    started: list[tuple[Running, threading.Thread]] = []

    def start(load: "Callable[[], Segmenter]" = make_tiny_segmenter, **options: Any) -> Running:
        server, listener, address = make_server(load, port=0, **options)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        running = Running(server, address)
        started.append((running, thread))
        return running

    yield start
    for running, thread in started:
        running.http.close()
        running.server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(start_server: "Callable[..., Running]") -> Running:
    """One with everything at its default."""
    return start_server()
