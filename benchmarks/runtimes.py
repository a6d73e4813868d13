"""Time and memory of the runtimes with 1, 2 and 4 threads: one photograph with ten labels, and a folder.

    python benchmarks/runtimes.py --exported exported exported-int8 --threads 1 2 4 --repeats 9 --pictures 200

The folder is the sample photographs in turn; nothing is written. Every contender runs in a process of its own, and they
take turns, so that other load on the machine is shared by all. torch runs the bundled model (or --model) in fp32,
eager. Masks are compared with torch's. The first result, for which words are embedded and shapes seen once, is not
timed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
TEN = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant"]
Contender = tuple[str, str, str]  # name, model ("" inside the package), runtime


def child(model: str, runtime: str, threads: int, mode: str) -> None:
    """Print wall and CPU seconds for each number of photographs read from stdin; at the end peak memory and the map."""
    import numpy as np

    from fusioner.batch.worker import peak_memory
    from fusioner.loading import load

    segmenter = load(model or None, "cpu", runtime=runtime, threads=threads)
    result = segmenter(SAMPLE, TEN, mode=mode)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, "end\n"):
        start, busy = time.perf_counter(), time.process_time()
        for photo in islice(cycle([SAMPLE, *sorted(SAMPLE.parent.glob("*.jpg"))]), int(line)):
            segmenter(photo, TEN, mode=mode)
        print(time.perf_counter() - start, time.process_time() - busy, flush=True)
    print(json.dumps([peak_memory(), result.label_map.astype(np.uint8).tobytes().hex()]), flush=True)


def contenders(model: str, exported: list[str]) -> list[Contender]:
    from fusioner.export.bundle import read_bundle
    from fusioner.export.network import READS

    found: list[Contender] = [("PyTorch fp32, eager", model, "torch")]
    if not model:
        found.append(("ONNX Runtime, bundled graphs", model, "onnx"))
    for folder in exported:
        bundle = read_bundle(folder)
        found += [
            (f"{name} {bundle.precision}, {bundle.format} files", folder, runtime)
            for runtime, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO"))
            if runtime in READS[bundle.format]
        ]
    return found


def start(model: str, runtime: str, threads: int, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", model, runtime, "--threads", str(threads), "--mode", mode]
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)
    assert process.stdout
    assert process.stdout.readline() == "ready\n", f"{runtime} of {model} did not start"
    return process


def say(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    return process.stdout.readline()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="model file for torch; without it the one inside the package")
    parser.add_argument("--exported", nargs="*", default=[], help="folders of fusioner export")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--mode", default="whole")
    parser.add_argument("--pictures", type=int, default=0, help="of the folder; 0: only one photograph")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "RUNTIME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        model, runtime = given.child
        child(model, runtime, given.threads[0], given.mode)
        return
    print(f"mode {given.mode}, medians of {given.repeats}; CPU: processor time of one photograph\n")
    print("| | threads | latency | CPU | of torch's CPU | folder, pictures/s | peak memory | masks equal |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for threads in given.threads:
        compare(contenders(given.model, given.exported), threads, given)
    print(f"\nload {os.getloadavg()[0]:.1f}")


def compare(chosen: list[Contender], threads: int, given: argparse.Namespace) -> None:
    """Print a row per contender; the first is the reference."""
    running = [(name, start(model, runtime, threads, given.mode)) for name, model, runtime in chosen]
    times: dict[str, list[list[float]]] = {name: [] for name, _ in running}
    for _ in range(given.repeats):
        for name, process in running:
            times[name].append([float(part) for part in say(process, "1").split()])
    rates = dict.fromkeys(times, "")
    for name, process in running if given.pictures else ():
        rates[name] = f"{given.pictures / float(say(process, str(given.pictures)).split()[0]):.2f}"
    ends = {name: json.loads(say(process, "end")) for name, process in running}
    maps = {name: bytes.fromhex(hexadecimal) for name, (_, hexadecimal) in ends.items()}
    first = next(iter(times))
    for name, runs in times.items():
        wall, busy = (statistics.median(column) for column in zip(*runs, strict=True))
        ratio = statistics.median(run[1] / base[1] for run, base in zip(runs, times[first], strict=True))
        same, memory = f"{_same(maps[name], maps[first]):.2%}", ends[name][0] / 2**20
        print(
            f"| {name} | {threads} | {wall:.3f} s | {busy:.3f} s | {ratio:.2f} | {rates[name]} | {memory:.0f} MiB | "
            f"{same} |",
            flush=True,
        )


def _same(one: bytes, other: bytes) -> float:
    import numpy as np

    first, second = (np.frombuffer(each, np.uint8) for each in (one, other))
    return float((first == second).mean())


if __name__ == "__main__":
    main()
