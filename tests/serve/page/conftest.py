"""A real browser for the tests of the page."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Download, Locator, Page


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """Start Debian's headless Chromium by Playwright; skip if either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright for the tests of the page")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium for the tests of the page")
    switches = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    switches += ["disable-component-update", "disable-sync"]
    playwright.expect.set_options(timeout=120_000)  # a busy machine must not fail tests
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=[f"--{switch}" for switch in switches])
        yield browser
        browser.close()


@contextmanager
def _visits(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    output: list[str] = []
    contexts = []

    def visit(address: str, **options: Any) -> "Page":
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}} | options
        context = browser.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(120_000)
        page = context.new_page()
        page.on("console", lambda message: output.append(message.text))
        page.on("pageerror", lambda error: output.append(str(error)))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in output if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def visit(chromium: "Browser") -> "Iterator[Callable[..., Page]]":
    """Return `visit(address, **options)`, which opens the page in a new browser context with these options.

    Output of the page to the console fails the test, except for failed requests, which tests provoke.
    """
    with _visits(chromium) as visit:
        yield visit


@pytest.fixture(scope="module")
def visit_once(chromium: "Browser") -> "Iterator[Callable[..., Page]]":
    """Return the function `visit` for a page that the tests of a module share."""
    with _visits(chromium) as visit:
        yield visit


@pytest.fixture(scope="session")
def painted() -> "Callable[..., str]":
    """Return `painted(page)`: hash the masks once they differ from `unlike` (hashes) or equal `like` (a hash)."""

    def painted(page: "Page", unlike: Sequence[str] = (), like: str | None = None) -> str:
        script = """async ([unlike, like]) => {
          const canvas = document.getElementById("overlay");
          for (const start = performance.now(); performance.now() - start < 120_000; ) {
            await new Promise(requestAnimationFrame); // sliders repaint with the next frame
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const pixels = new Uint32Array(data.buffer);
            const hash = String(pixels.reduce((sum, pixel) => (Math.imul(sum, 31) + pixel) | 0, 7));
            if (!unlike.includes(hash) && (like ?? hash) === hash) return hash;
          }
          throw new Error("the masks were not painted as expected");
        }"""
        return page.evaluate(script, [list(unlike), like])

    return painted


@pytest.fixture(scope="session")
def measured() -> "Callable[..., dict[str, float]]":
    """Return `measured(page, selector, near, **expected)`: wait for an element's box and return it."""

    def measured(page: "Page", selector: str, near: float = 0.5, **expected: float) -> dict[str, float]:
        script = """([selector, near, expected]) => {
          const box = document.querySelector(selector).getBoundingClientRect().toJSON();
          return Object.entries(expected).every(([name, value]) => Math.abs(box[name] - value) <= near) && box;
        }"""
        return page.wait_for_function(script, arg=[selector, near, expected]).json_value()

    return measured


@pytest.fixture
def downloaded() -> "Callable[[Page, Locator], Download]":
    """Return `downloaded(page, button)`: click and return the download, or fail with the page's message."""

    def downloaded(page: "Page", button: "Locator") -> "Download":
        from playwright.sync_api import TimeoutError

        try:
            with page.expect_download() as download:
                button.click()
        except TimeoutError:
            output = page.locator("#download-error").inner_text()
            pytest.fail(f"no download from {button}, busy: {button.get_attribute('aria-busy')}, page says: {output!r}")
        return download.value

    return downloaded
