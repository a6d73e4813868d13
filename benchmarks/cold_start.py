"""Time commands from their start to their result, as multiples of `python -c "import torch"` in the same run.

    python benchmarks/cold_start.py --repeats 5

Every command is a new process, and commands alternate, so that other load on the machine affects all alike. Prints
medians. Compiled Python files are read from a temporary folder, which the first round fills.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
FUSIONER = [sys.executable, "-m", "fusioner"]


def run(command: list[str]) -> float:
    """Return the wall time of a process, s."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def start_server() -> float:
    """Return the seconds until `fusioner serve` is ready."""
    start = time.perf_counter()
    with subprocess.Popen([*FUSIONER, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[3]
        while not _is_ready(address):
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        server.terminate()
    return seconds


def _is_ready(address: str) -> bool:
    try:
        return urlopen(f"{address}/readyz").status == 200
    except URLError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as compiled:
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        predict = [*FUSIONER, "predict", str(SAMPLE), "--labels", "cat", "--out", out]
        commands = {
            "python -c 'import torch'": lambda: run([sys.executable, "-c", "import torch"]),
            "fusioner --help": lambda: run([*FUSIONER, "--help"]),
            "python -c 'import fusioner'": lambda: run([sys.executable, "-c", "import fusioner"]),
            "predict, mode whole": lambda: run([*predict, "--mode", "whole"]),
            "predict, mode multicrop": lambda: run([*predict, "--mode", "multicrop"]),
            "predict, mode whole, torch": lambda: run([*predict, "--mode", "whole", "--runtime", "torch"]),
            "serve, until ready": start_server,
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(1 + args.repeats):  # the first round fills the file cache and compiles
            for name, measure in commands.items():
                seconds[name].append(measure())
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    base = medians["python -c 'import torch'"]
    for name, median in medians.items():
        print(f"{name:<28}{median:>8.2f} s{median / base:>8.2f} x")


if __name__ == "__main__":
    main()
