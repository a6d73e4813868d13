"""Build docs/images/page.png, a screenshot of the web page (needs chromium and playwright)."""

import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import ViewportSize, expect, sync_playwright

REPO = Path(__file__).resolve().parents[1]
SIZE: ViewportSize = {"width": 1280, "height": 880}


def main() -> None:
    """Serve on a free port, open the first sample, point at the helmet, and take a screenshot."""
    command = [sys.executable, "-m", "fusioner", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout
        address = server.stdout.readline().split()[3]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.goto(address)
        page.get_by_role("button", name="Eileen Collins").click(timeout=120_000)
        expect(page.locator("#live")).to_have_text(re.compile("person .*%"), timeout=120_000)
        photo = page.locator("#photo").bounding_box()
        assert photo
        page.mouse.move(photo["x"] + 0.83 * photo["width"], photo["y"] + 0.85 * photo["height"])
        page.evaluate("() => document.activeElement.blur()")
        screenshot = Image.open(BytesIO(page.screenshot()))
        browser.close()
        server.terminate()
    screenshot = screenshot.convert("RGB")
    colours = screenshot.quantize(palette=screenshot.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    colours.save(REPO / "docs" / "images" / "page.png", optimize=True)


if __name__ == "__main__":
    main()
