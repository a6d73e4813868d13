"""A real browser for the tests of the page."""

import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Download, Locator, Page


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """Debian's Chromium without a window, driven by Playwright; tests that need it skip without either."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright for the tests of the page")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium: apt-get install chromium for the tests of the page")
    switches = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    switches += ["disable-component-update", "disable-sync"]
    playwright.expect.set_options(timeout=60_000)  # a busy machine is no failure
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
        settings: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}} | options
        context = chromium.new_context(**settings)
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [text for text in said if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def painted() -> "Callable[[Page], int]":
    """A number that stands for what is painted over the photograph."""

    def painted(page: "Page") -> int:
        return page.locator("#overlay").evaluate("""async canvas => {
          await new Promise(requestAnimationFrame); // sliders repaint with the next frame
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return new Uint32Array(data.buffer).reduce((sum, pixel) => (Math.imul(sum, 31) + pixel) | 0, 7);
        }""")

    return painted


@pytest.fixture
def downloaded() -> "Callable[[Page, Locator], Download]":
    """`downloaded(page, button)`: the download that the button starts; fails with what the page says if none comes."""

    def downloaded(page: "Page", button: "Locator") -> "Download":
        from playwright.sync_api import TimeoutError

        try:
            with page.expect_download() as download:
                button.click()
        except TimeoutError:
            said = page.locator("#download-error").inner_text()
            pytest.fail(f"no download from {button}, busy: {button.get_attribute('aria-busy')}, page says: {said!r}")
        return download.value

    return downloaded
