"""Time `fusioner predict` on one image, alone and beside busy processes, by number of threads and spin policy.

    python benchmarks/loaded.py [--busy 0 2] [--rounds 3]
    python benchmarks/loaded.py --operators
    python benchmarks/loaded.py --threads

Waiting threads of OpenMP (torch) and of ONNX Runtime may spin, which takes cores from the threads that they wait for if
other processes are busy. Prints the median of the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

PHOTO = Path(__file__).parent.parent / "samples" / "coffee.jpg"
CASES: dict[str, tuple[str, Mapping[str, str]]] = {
    "ONNX Runtime, as shipped": ("onnx", {}),
    "ONNX Runtime, NumPy with two threads": ("onnx", {"OPENBLAS_NUM_THREADS": "2"}),
    "ONNX Runtime, one thread": ("onnx", {"OMP_NUM_THREADS": "1"}),
    "torch, as shipped": ("torch", {}),
    "torch, spinning": ("torch", {"OMP_WAIT_POLICY": "ACTIVE"}),
    "torch, one thread": ("torch", {"OMP_NUM_THREADS": "1"}),
}


OPERATORS = """
import time, torch
x, w = torch.rand(1, 64, 56, 56), torch.rand(64, 64, 3, 3)
with torch.no_grad():
    for step in range(65):
        if step == 5:
            start = time.monotonic()
        torch.nn.functional.conv2d(x, w, padding=1).relu_().softmax(1)
print(f"{time.monotonic() - start:.2f} s")
"""


def operators() -> None:
    """Print the time of sixty convolutions of torch by spin policy, twice, under the current load."""
    for _ in range(2):
        for variables in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_NUM_THREADS": "1"}):
            environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
            command = [sys.executable, "-c", OPERATORS]
            result = subprocess.run(command, env=environment | variables, check=True, capture_output=True, text=True)
            print(variables, result.stdout.strip(), flush=True)


def threads(rounds: int) -> None:
    """Print CPU and wall seconds of one image by number of threads, alternating, under the current load."""
    import fusioner

    segmenters = {count: fusioner.load(runtime="onnx", threads=count) for count in (1, 2)}
    measured: dict[int, list[tuple[float, float]]] = {count: [] for count in segmenters}
    for number in range(rounds + 1):
        for count, segmenter in segmenters.items():
            cpu, wall = time.process_time(), time.monotonic()
            segmenter(PHOTO, ["cup", f"thing {number}"], mode="whole")
            if number:  # the first round warms up
                measured[count].append((time.process_time() - cpu, time.monotonic() - wall))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for count, times in measured.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{count} threads: {cpu:.2f} s CPU, {wall:.2f} s wall")


def seconds(runtime: str, variables: Mapping[str, str], folder: str) -> float:
    """Return the wall time of one command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | {**variables}
    arguments = ["predict", PHOTO, "--labels", "cup, spoon, table", "--runtime", runtime, "--out", folder]
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "fusioner", *map(str, arguments)], env=environment, check=True, capture_output=True
    )
    return time.monotonic() - start


def main() -> None:
    """Print a row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--operators", action="store_true", help="sixty convolutions instead of whole commands")
    parser.add_argument("--threads", action="store_true", help="one image by number of threads, in one process")
    args = parser.parse_args()
    if args.threads:
        threads(args.rounds)
        return
    if args.operators:
        operators()
        return
    print("| | " + " | ".join(f"{busy} busy processes" for busy in args.busy) + " |")
    print("|---" * (1 + len(args.busy)) + "|")
    for name, (runtime, variables) in CASES.items():
        cells = []
        for busy in args.busy:
            busy_processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            try:
                with tempfile.TemporaryDirectory() as folder:
                    times = [seconds(runtime, variables, folder) for _ in range(args.rounds)]
            finally:
                for process in busy_processes:
                    process.kill()
                    process.wait()
            cells.append(f"{statistics.median(times):.1f} s")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
