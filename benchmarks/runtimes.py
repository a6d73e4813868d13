"""What each runtime costs: one photograph, ten labels, from the file to the masks; latency and peak memory.

    python benchmarks/runtimes.py --exported exported exported-fp16 exported-int8 --repeats 9

Every contender runs in a process of its own, which says its peak memory; they take turns, so that whatever else the
machine does is shared by all. torch runs the model inside the package (or --model) in fp32, eager. Masks are compared
with torch's. The first answer (reading words, and what a runtime does at first sight of a shape) is not timed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "chelsea.jpg"
TEN = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant"]
Contender = tuple[str, str, str]  # name, model ("" inside the package), runtime


def child(model: str, runtime: str, threads: int) -> None:
    """Answer a line with a line: seconds of one answer; at the end peak memory and the map."""
    import numpy as np

    from fusioner.segmenter import load

    segmenter = load(model or None, "cpu", runtime=runtime, threads=threads)
    result = segmenter(SAMPLE, TEN)
    print("ready", flush=True)
    for _ in iter(sys.stdin.readline, "end\n"):
        start, busy = time.perf_counter(), time.process_time()
        result = segmenter(SAMPLE, TEN)
        print(time.perf_counter() - start, time.process_time() - busy, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([peak, result.label_map.astype(np.uint8).tobytes().hex()]), flush=True)


def contenders(model: str, exported: list[str]) -> list[Contender]:
    from fusioner.export.bundle import read_bundle
    from fusioner.export.runtime import READS

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


def start(model: str, runtime: str, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", model, runtime, "--threads", str(threads)]
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
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "RUNTIME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        model, runtime = given.child
        child(model, runtime, given.threads)
        return
    chosen = contenders(given.model, given.exported)
    running = [(name, start(model, runtime, given.threads)) for name, model, runtime in chosen]
    times: dict[str, list[list[float]]] = {name: [] for name, _ in running}
    for _ in range(given.repeats):
        for name, process in running:
            times[name].append([float(part) for part in say(process, "go").split()])
    ends = {name: json.loads(say(process, "end")) for name, process in running}
    maps = {name: bytes.fromhex(hexadecimal) for name, (_, hexadecimal) in ends.items()}
    print(f"{given.threads} threads, load {os.getloadavg()[0]:.1f}, medians of {given.repeats}\n")
    print("| | latency | processor time | of torch's | peak memory | masks equal |\n|---|---|---|---|---|---|")
    first = next(iter(times))
    for name, runs in times.items():
        wall, busy = (statistics.median(column) for column in zip(*runs, strict=True))
        base_wall = statistics.median(run[0] for run in times[first])
        same = "yes" if maps[name] == maps[first] else f"{_same(maps[name], maps[first]):.2%}"
        memory = ends[name][0] / 2**20
        print(f"| {name} | {wall:.3f} s | {busy:.3f} s | {base_wall / wall:.2f} x | {memory:.0f} MiB | {same} |")


def _same(one: bytes, other: bytes) -> float:
    import numpy as np

    first, second = (np.frombuffer(each, np.uint8) for each in (one, other))
    return float((first == second).mean())


if __name__ == "__main__":
    main()
