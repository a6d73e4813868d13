"""Load test of the server: compared with a naive one on the same model, or alone for some minutes.

    python benchmarks/serve_load.py                      # throughput and latency at 1, 4 and 16 clients
    python benchmarks/serve_load.py --queue              # 16 clients relative to one, alternating
    python benchmarks/serve_load.py --soak 10            # ten minutes of mixed requests; reports the memory

The naive server runs the whole model on every request, in FastAPI's thread pool, and caches nothing. Both get the same
photos; "labels" is one photo whose labels change with every request, as on the page.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
WORDS = [
    "cat",
    "dog",
    "person",
    "car",
    "tree",
    "sofa",
    "table",
    "cup",
    "plate",
    "spoon",
    "flag",
    "rocket",
    "window",
    "wall",
    "book",
    "bottle",
]


def naive_app():
    from fastapi import FastAPI, Form, UploadFile

    import fusioner

    app, segmenter = FastAPI(), fusioner.load(device="cpu")
    one_at_a_time = threading.Lock()

    @app.get("/readyz")
    def readyz() -> dict:
        return {}

    @app.post("/v1/segment")
    def segment(image: UploadFile, labels: str = Form()) -> dict:
        content = image.file.read()
        with one_at_a_time:  # a Segmenter belongs to one thread
            result = segmenter(content, labels)
        from fusioner.formats import describe

        return describe(result)

    return app


@contextmanager
def running(ours: bool, port: int) -> Iterator[tuple[str, int]]:
    """Run a server and yield its address and process id."""
    if ours:
        command = [
            sys.executable,
            "-m",
            "fusioner",
            "serve",
            "--port",
            str(port),
            "--device",
            "cpu",
            "--timeout",
            "600",
        ]
    else:
        script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import serve_load, uvicorn"
        script += f"; uvicorn.run(serve_load.naive_app(), port={port}, log_level='warning')"
        command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(address):
            assert process.poll() is None, "the server did not start"
            time.sleep(0.2)
        yield address, process.pid
    finally:
        process.terminate()
        process.wait()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz").is_success
    except httpx.TransportError:
        return False


def photographs() -> list[bytes]:
    """Return the samples at 640 pixels, plain and mirrored."""
    files = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as image:
            image.thumbnail((640, 640))
            for view in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                stream = BytesIO()
                view.save(stream, "JPEG")
                files.append(stream.getvalue())
    return files


Ask = Callable[[httpx.Client, int], httpx.Response]


def new_image(address: str) -> Ask:
    files = photographs()

    def ask(client: httpx.Client, number: int) -> httpx.Response:
        fields = {"labels": ",".join(labels(number))}
        return client.post(f"{address}/v1/segment", files={"image": files[number % len(files)]}, data=fields)

    return ask


def changing_labels(address: str, ours: bool) -> Ask:
    photo = photographs()[0]
    if not ours:
        return lambda client, number: client.post(
            f"{address}/v1/segment", files={"image": photo}, data={"labels": ",".join(labels(number))}
        )
    kept = httpx.post(f"{address}/v1/images", files={"image": photo}, timeout=600).json()["id"]
    path = f"{address}/v1/images/{kept}/segment"
    return lambda client, number: client.post(path, json={"labels": labels(number)})


def labels(number: int) -> list[str]:
    """Return three words, one of them new, as when a user adds a label."""
    return [WORDS[number % 8], WORDS[8 + number % 7], f"{WORDS[number % 16]} {number}"]


def load(ask: Ask, clients: int, requests: int, numbers: Iterator[int]) -> tuple[float, list[float]]:
    """Return the requests per second and the seconds of each."""
    times: list[float] = []
    todo = iter(range(requests))
    lock = threading.Lock()

    def work() -> None:
        with httpx.Client(timeout=600, verify=False) as client:  # no certificates to load: plain HTTP
            while True:
                with lock:
                    if next(todo, None) is None:
                        return
                    number = next(numbers)
                start = time.perf_counter()
                ask(client, number).raise_for_status()
                times.append(time.perf_counter() - start)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(work) for _ in range(clients)]:
            future.result()
    return requests / (time.perf_counter() - start), times


def compare(repetitions: int, requests: int, counts: list[int]) -> None:
    numbers = itertools.count()
    with running(True, 8801) as (ours, _), running(False, 8802) as (naive, _):
        print(
            "| case | clients | ours req/s | naive req/s | ratio | ours p50 / p95 / p99 s | naive p50 / p95 / p99 s |"
        )
        print("|---|---|---|---|---|---|---|")
        for case in ("new image", "labels"):
            asks = [
                new_image(address) if case == "new image" else changing_labels(address, address == ours)
                for address in (ours, naive)
            ]
            for ask in asks:
                load(ask, 1, 2, numbers)
            for clients in counts:
                rates: list[list[float]] = [[], []]
                times: list[list[float]] = [[], []]
                for repetition in range(repetitions):  # alternate, so that both run under the same conditions
                    for which in (0, 1) if repetition % 2 else (1, 0):
                        rate, took = load(asks[which], clients, max(requests, clients), numbers)
                        rates[which].append(rate)
                        times[which] += took
                ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
                shown = " | ".join(f"{statistics.median(one):.2f}" for one in rates)
                print(
                    f"| {case} | {clients} | {shown} | {ratio:.2f} | {spread(times[0])} | {spread(times[1])} |",
                    flush=True,
                )


def queue(repetitions: int, clients: int) -> int:
    """Compare many clients with one; fail if they get fewer answers, or wait longer than one after the other."""
    numbers, failed = itertools.count(), False
    with running(True, 8804) as (address, _):
        for case, ask in (("new image", new_image(address)), ("labels", changing_labels(address, True))):
            load(ask, 1, 2, numbers)
            rates, waits = [], []
            for _ in range(repetitions):  # alternate, so that both run under the same conditions
                alone, _ = load(ask, 1, clients // 2, numbers)
                together, times = load(ask, clients, 2 * clients, numbers)
                rates.append(together / alone)
                waits.append(sorted(times)[int(0.95 * len(times))] * alone / clients)
            rate, wait = statistics.median(rates), statistics.median(waits)
            failed |= rate < 1 or wait > 1
            print(f"{case}: {clients} clients get {rate:.2f} times the answers of one a second;", end=" ")
            print(f"p95 is {wait:.2f} of {clients} answers of one", flush=True)
    return int(failed)


def spread(times: list[float]) -> str:
    times = sorted(times)
    return " / ".join(f"{times[min(len(times) - 1, int(len(times) * share))]:.2f}" for share in (0.5, 0.95, 0.99))


def resident(pid: int) -> float:
    """Return the resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1e3


def soak(minutes: float) -> int:
    """Send mixed requests of two clients; compare the median memory of the last fifth with that of the second."""
    seen: list[float] = []
    with running(True, 8803) as (address, pid):
        asks = [new_image(address), changing_labels(address, True), uploads(address), hang_up(address)]
        numbers, end = itertools.count(), time.monotonic() + 60 * minutes
        done = itertools.count()

        def work() -> None:
            with httpx.Client(timeout=600, verify=False) as client:  # no certificates to load: plain HTTP
                while time.monotonic() < end:
                    number = next(numbers)
                    asks[number % len(asks)](client, number).raise_for_status()
                    next(done)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(1)
            seen.append(resident(pid))
        for thread in threads:
            thread.join()
    fifth = len(seen) // 5
    early, late = statistics.median(seen[fifth : 2 * fifth]), statistics.median(seen[-fifth:])
    verdict = "no growth" if late < 1.05 * early else "GROWTH"
    print(f"{next(done)} requests in {minutes:g} min; memory {early:.0f} MB early, {late:.0f} MB late: {verdict}")
    return 0 if verdict == "no growth" else 1


def uploads(address: str) -> Ask:
    files = photographs()

    def ask(client: httpx.Client, number: int) -> httpx.Response:
        kept = client.post(f"{address}/v1/images", files={"image": files[number % len(files)]}).json()["id"]
        client.post(f"{address}/v1/images/{kept}/segment", json={"labels": labels(number), "format": "overlay"})
        return client.delete(f"{address}/v1/images/{kept}")

    return ask


def hang_up(address: str) -> Ask:
    """Disconnect before the response, then check the server's health."""
    file = photographs()[0]

    def ask(client: httpx.Client, number: int) -> httpx.Response:
        with suppress(httpx.TimeoutException):
            httpx.post(f"{address}/v1/segment", files={"image": file}, data={"labels": "cat"}, timeout=0.2)
        return client.get(f"{address}/healthz")

    return ask


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", action="store_true")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="of each repetition")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    wishes = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if wishes.queue:
        sys.exit(queue(wishes.repetitions, max(wishes.clients)))
    sys.exit(soak(wishes.soak) if wishes.soak else compare(wishes.repetitions, wishes.requests, wishes.clients))
