"""How long the page takes to the first mask and to a further label, beside the API on the same server.

    python benchmarks/page.py --repeats 5

A server of its own and Debian's Chromium without a window; the sample is a photograph with a new pixel each time, so
that nothing is cached. "page" is from the file's choice until the share of the label is shown, "API" one request with
the same file and label; "a label added" is from the key until its share is shown. The load is that of the machine
before and after.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
WORDS = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant", "cup", "wall", "floor"]

SHOWN = """word => {
  const rows = [...document.querySelectorAll("#labels [data-word]")];
  return rows.some((row) => row.dataset.word === word && /%|found/.test(row.querySelector(".share").textContent));
}"""


def photograph(number: int, side: int) -> bytes:
    """The sample enlarged, with one pixel changed."""
    file = BytesIO()
    with Image.open(SAMPLE) as image:
        image = image.resize((side, side * image.height // image.width))
        image.putpixel((number, 0), (number, 0, 0))
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=1200)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "fusioner", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as driver:
        assert server.stdout
        address = server.stdout.readline().split()[3]
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        times: dict[str, list[float]] = {"API": [], "page": [], "a label added": []}
        with httpx.Client(base_url=address, timeout=120) as http:
            for number in range(given.repeats + 1):
                content = photograph(2 * number, given.side)
                start = time.perf_counter()
                fields = {"labels": WORDS[0], "mode": "whole"}
                http.post("/v1/segment", data=fields, files={"image": content}).raise_for_status()
                times["API"].append(time.perf_counter() - start)
                page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
                page.goto(address)
                page.wait_for_selector("#samples button")
                page.evaluate("word => sessionStorage.setItem('words', JSON.stringify([word]))", WORDS[0])
                file = {"name": "photo.png", "mimeType": "image/png", "buffer": photograph(2 * number + 1, given.side)}
                start = time.perf_counter()
                page.set_input_files("#file", file)  # pyright: ignore[reportArgumentType]
                page.wait_for_function(SHOWN, arg=WORDS[0])
                times["page"].append(time.perf_counter() - start)
                added = f"{WORDS[1 + number % 12]} {number}"
                page.fill("#words", added)
                start = time.perf_counter()
                page.press("#words", "Enter")
                page.wait_for_function(SHOWN, arg=added)
                times["a label added"].append(time.perf_counter() - start)
                page.context.close()
        browser.close()
        server.terminate()
    for name, seconds in times.items():
        seconds = seconds[1:]  # the first warms up
        print(f"{name}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f}")
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
