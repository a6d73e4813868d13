"""Real servers on free ports: the toy model behind uvicorn, in a thread of the test's own process."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """Debian's Chromium without a window, driven by Playwright; tests that need it skip without either."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright for the tests of the page")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium for the tests of the page")
    switches = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    switches += ["disable-component-update", "disable-sync"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=[f"--{switch}" for switch in switches])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: "Browser") -> "Iterator[Callable[..., Page]]":
    """`visit(address, **options of the browser's context)`: the page opened anew.

    Anything the page says on the console fails the test, but for the answers that it provokes on purpose.
    """
    said: list[str] = []
    contexts = []

    def visit(address: str, **options: Any) -> "Page":
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []
