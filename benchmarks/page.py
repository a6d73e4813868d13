"""Time the first mask and a further label in the web page, and the API on the same server.

    python benchmarks/page.py --repeats 5

Starts a server and headless Chromium; the image is a sample with a new pixel value each time, so that nothing is
cached. "page" is from choosing the file until the percentage of the label is shown, "API" one request with the same
file and label, "a label added" from the key press until the percentage is shown. API and page alternate; their ratio is
the median over pairs. CPU time is that of the server and all browser processes and, unlike wall time, hardly depends on
other load; the load average is printed as well.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
LABELS = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant", "cup", "wall", "floor"]

# Resolves when the percentage of a label is shown; an observer, as polling at every frame would make the browser paint.
SHOWN = """word => new Promise((resolve) => {
  const check = () => {
    const rows = [...document.querySelectorAll("#labels [data-word]")];
    const row = rows.find((row) => row.dataset.word === word);
    if (!/%|found/.test(row?.querySelector(".share").textContent)) return;
    observer.disconnect();
    resolve();
  };
  const observer = new MutationObserver(check);
  observer.observe(document.getElementById("labels"), { subtree: true, childList: true, characterData: true });
  check();
})"""


def make_image(number: int, side: int) -> bytes:
    """Return the enlarged sample with one pixel changed, as PNG."""
    file = BytesIO()
    with Image.open(SAMPLE) as image:
        image = image.resize((side, side * image.height // image.width))
        image.putpixel((number, 0), (number, 0, 0))
        image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its living descendants, s."""
    spent = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        spent += sum(cpu_seconds(int(child)) for child in (task / "children").read_text().split())
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return spent + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=1200)
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    command = [sys.executable, "-m", "fusioner", "serve", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as driver,
    ):
        file = Path(folder) / "photo.png"
        assert server.stdout
        address = server.stdout.readline().split()[3]
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        times: dict[str, list[float]] = {"API": [], "page": [], "a label added": []}
        cpu: dict[str, list[float]] = {"API: server": [], "page: server": [], "page: browser": []}
        cpu["a label added: server and browser"] = []

        def measure() -> tuple[float, float, float]:
            """Return the time and the CPU time of the server and of the browser so far, s."""
            spent = cpu_seconds(server.pid)
            return time.perf_counter(), spent, cpu_seconds(os.getpid()) - spent - time.process_time()

        def elapsed(before: tuple[float, float, float]) -> list[float]:
            return [after - start for after, start in zip(measure(), before, strict=True)]

        with httpx.Client(base_url=address, timeout=120) as http:
            for number in range(args.repeats + 1):
                content = make_image(2 * number, args.side)
                start = measure()
                fields = {"labels": LABELS[0], "mode": "whole"}
                http.post("/v1/segment", data=fields, files={"image": content}).raise_for_status()
                for row, value in zip((times["API"], cpu["API: server"]), elapsed(start), strict=False):
                    row.append(value)
                page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
                page.goto(address)
                page.wait_for_selector("#samples button")
                page.evaluate("word => sessionStorage.setItem('words', JSON.stringify([word]))", LABELS[0])
                file.write_bytes(make_image(2 * number + 1, args.side))
                start = measure()
                page.set_input_files("#file", file)
                page.evaluate(SHOWN, LABELS[0])
                for row, value in zip(
                    (times["page"], cpu["page: server"], cpu["page: browser"]), elapsed(start), strict=True
                ):
                    row.append(value)
                added = f"{LABELS[1 + number % 12]} {number}"
                page.fill("#words", added)
                start = measure()
                page.press("#words", "Enter")
                page.evaluate(SHOWN, added)
                seconds, *spent = elapsed(start)
                times["a label added"].append(seconds)
                cpu["a label added: server and browser"].append(sum(spent))
                page.context.close()
        browser.close()
        server.terminate()
    for name, seconds in itertools.chain(times.items(), cpu.items()):
        del seconds[0]  # warm-up
        kind = "CPU s" if name in cpu else "s"
        print(f"{name}: median {statistics.median(seconds):.2f} {kind}, {min(seconds):.2f} to {max(seconds):.2f}")
    ratio = statistics.median(page / api for page, api in zip(times["page"], times["API"], strict=True))
    spent = zip(cpu["page: server"], cpu["page: browser"], cpu["API: server"], strict=True)
    print(f"page / API: {ratio:.2f} by time, {statistics.median((a + b) / c for a, b, c in spent):.2f} by CPU time")
    print(f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
