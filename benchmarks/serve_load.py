"""Load-test the server: against a naive server with the same model, or alone for some minutes.

    python benchmarks/serve_load.py                      # throughput and latency at 1, 4 and 16 clients
    python benchmarks/serve_load.py --queue              # 16 clients relative to one, alternating
    python benchmarks/serve_load.py --soak 10            # ten minutes of mixed requests; reports the memory

The naive server runs the whole model on every request, in FastAPI's thread pool, and caches nothing. Both get the same
images; "labels" is one image whose labels change with every request, as in the web page.
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
    "cat", "dog", "person", "car", "tree", "sofa", "table", "cup", "plate", "spoon", "flag", "rocket", "window", "wall",
    "book", "bottle",
]  # fmt: skip


def naive_app():
    from fastapi import FastAPI, Form, UploadFile

    import fusioner

    app, segmenter = FastAPI(), fusioner.load(device="cpu")
    lock = threading.Lock()

    @app.get("/readyz")
    def readyz() -> dict:
        return {}

    @app.post("/v1/segment")
    def segment(image: UploadFile, labels: str = Form()) -> dict:
        content = image.file.read()
        with lock:  # a Segmenter is not thread-safe
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


def sample_images() -> list[bytes]:
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


Sender = Callable[[httpx.Client, int], httpx.Response]


def new_image(address: str) -> Sender:
    files = sample_images()

    def send(client: httpx.Client, number: int) -> httpx.Response:
        fields = {"labels": ",".join(labels(number))}
        return client.post(f"{address}/v1/segment", files={"image": files[number % len(files)]}, data=fields)

    return send


def changing_labels(address: str, ours: bool) -> Sender:
    photo = sample_images()[0]
    if not ours:
        return lambda client, number: client.post(
            f"{address}/v1/segment", files={"image": photo}, data={"labels": ",".join(labels(number))}
        )
    image_id = httpx.post(f"{address}/v1/images", files={"image": photo}, timeout=600).json()["id"]
    path = f"{address}/v1/images/{image_id}/segment"
    return lambda client, number: client.post(path, json={"labels": labels(number)})


def labels(number: int) -> list[str]:
    """Return three labels, one of them new, as when a user adds a label."""
    return [WORDS[number % 8], WORDS[8 + number % 7], f"{WORDS[number % 16]} {number}"]


def load(send: Sender, clients: int, requests: int, numbers: Iterator[int]) -> tuple[float, list[float]]:
    """Return the requests per second, and the latency of each in seconds."""
    times: list[float] = []
    remaining = iter(range(requests))
    lock = threading.Lock()

    def work() -> None:
        with httpx.Client(timeout=600, verify=False) as client:  # no certificates to load: plain HTTP
            while True:
                with lock:
                    if next(remaining, None) is None:
                        return
                    number = next(numbers)
                start = time.perf_counter()
                send(client, number).raise_for_status()
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
            senders = [
                new_image(address) if case == "new image" else changing_labels(address, address == ours)
                for address in (ours, naive)
            ]
            for send in senders:
                load(send, 1, 2, numbers)
            for clients in counts:
                rates: list[list[float]] = [[], []]
                times: list[list[float]] = [[], []]
                for repetition in range(repetitions):  # alternate, so that both run under the same conditions
                    for server in (0, 1) if repetition % 2 else (1, 0):
                        rate, latencies = load(senders[server], clients, max(requests, clients), numbers)
                        rates[server].append(rate)
                        times[server] += latencies
                ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
                median_rates = " | ".join(f"{statistics.median(values):.2f}" for values in rates)
                print(
                    f"| {case} | {clients} | {median_rates} | {ratio:.2f} | {spread(times[0])} | {spread(times[1])} |",
                    flush=True,
                )


def queue(repetitions: int, clients: int) -> int:
    """Compare many clients with one; return 1 if they get fewer responses, or wait longer than one after the other."""
    numbers, failed = itertools.count(), False
    with running(True, 8804) as (address, _):
        for case, send in (("new image", new_image(address)), ("labels", changing_labels(address, True))):
            load(send, 1, 2, numbers)
            ratios, waits = [], []
            for _ in range(repetitions):  # alternate, so that both run under the same conditions
                single_rate, _ = load(send, 1, clients // 2, numbers)
                rate, times = load(send, clients, 2 * clients, numbers)
                ratios.append(rate / single_rate)
                waits.append(sorted(times)[int(0.95 * len(times))] * single_rate / clients)
            ratio, wait = statistics.median(ratios), statistics.median(waits)
            failed |= ratio < 1 or wait > 1
            print(f"{case}: {clients} clients get {ratio:.2f} times the responses of one per second;", end=" ")
            print(f"p95 is {wait:.2f} times the time of {clients} responses to one", flush=True)
    return int(failed)


def spread(times: list[float]) -> str:
    times = sorted(times)
    return " / ".join(f"{times[min(len(times) - 1, int(len(times) * quantile))]:.2f}" for quantile in (0.5, 0.95, 0.99))


def resident(pid: int) -> float:
    """Return the resident memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1e3


def soak(minutes: float) -> int:
    """Send mixed requests of two clients; return 1 if the median memory grows from the second to the last fifth."""
    memory: list[float] = []
    with running(True, 8803) as (address, pid):
        senders = [new_image(address), changing_labels(address, True), uploads(address), hang_up(address)]
        numbers, end = itertools.count(), time.monotonic() + 60 * minutes
        done = itertools.count()

        def work() -> None:
            with httpx.Client(timeout=600, verify=False) as client:  # no certificates to load: plain HTTP
                while time.monotonic() < end:
                    number = next(numbers)
                    senders[number % len(senders)](client, number).raise_for_status()
                    next(done)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        while time.monotonic() < end:
            time.sleep(1)
            memory.append(resident(pid))
        for thread in threads:
            thread.join()
    fifth = len(memory) // 5
    early, late = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    verdict = "no growth" if late < 1.05 * early else "GROWTH"
    print(f"{next(done)} requests in {minutes:g} min; memory {early:.0f} MB early, {late:.0f} MB late: {verdict}")
    return 0 if verdict == "no growth" else 1


def uploads(address: str) -> Sender:
    files = sample_images()

    def send(client: httpx.Client, number: int) -> httpx.Response:
        image_id = client.post(f"{address}/v1/images", files={"image": files[number % len(files)]}).json()["id"]
        client.post(f"{address}/v1/images/{image_id}/segment", json={"labels": labels(number), "format": "overlay"})
        return client.delete(f"{address}/v1/images/{image_id}")

    return send


def hang_up(address: str) -> Sender:
    """Disconnect before the response, then check the server's health."""
    file = sample_images()[0]

    def send(client: httpx.Client, number: int) -> httpx.Response:
        with suppress(httpx.TimeoutException):
            httpx.post(f"{address}/v1/segment", files={"image": file}, data={"labels": "cat"}, timeout=0.2)
        return client.get(f"{address}/healthz")

    return send


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", action="store_true")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=16, help="requests per repetition")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.queue:
        sys.exit(queue(args.repetitions, max(args.clients)))
    sys.exit(soak(args.soak) if args.soak else compare(args.repetitions, args.requests, args.clients))
