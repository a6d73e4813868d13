"""Measure time and memory of the runtimes with 1, 2 and 4 threads: one image with ten labels, and a folder.

    python benchmarks/runtimes.py --exported exported exported-int8 --threads 1 2 4 --repeats 9 --pictures 200

The folder contains the sample photographs repeatedly; nothing is written. Every runtime has a separate process, and
they alternate, so that other load on the machine affects all alike. torch runs the bundled model (or --model) in fp32,
eager, and is the reference for the masks. The first result, which includes text embedding, is not timed.
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
LABELS = ["cat", "dog", "sofa", "table", "chair", "lamp", "rug", "window", "door", "plant"]
Candidate = tuple[str, str, str]  # name, model ("": bundled), runtime


def run_child(model: str, runtime: str, threads: int, mode: str) -> None:
    """Print wall and CPU seconds for each number of images on stdin; at the end peak memory and the label map."""
    import numpy as np

    from fusioner.batch.worker import peak_memory
    from fusioner.loading import load

    segmenter = load(model or None, "cpu", runtime=runtime, threads=threads)
    result = segmenter(SAMPLE, LABELS, mode=mode)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, "end\n"):
        start, cpu = time.perf_counter(), time.process_time()
        for photo in islice(cycle([SAMPLE, *sorted(SAMPLE.parent.glob("*.jpg"))]), int(line)):
            segmenter(photo, LABELS, mode=mode)
        print(time.perf_counter() - start, time.process_time() - cpu, flush=True)
    print(json.dumps([peak_memory(), result.label_map.astype(np.uint8).tobytes().hex()]), flush=True)


def find_candidates(model: str, exported: list[str]) -> list[Candidate]:
    from fusioner.export.bundle import read_bundle
    from fusioner.export.network import READS

    candidates: list[Candidate] = [("PyTorch fp32, eager", model, "torch")]
    if not model:
        candidates.append(("ONNX Runtime, bundled graphs", model, "onnx"))
    for folder in exported:
        bundle = read_bundle(folder)
        candidates += [
            (f"{name} {bundle.precision}, {bundle.format} files", folder, runtime)
            for runtime, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO"))
            if runtime in READS[bundle.format]
        ]
    return candidates


def start(model: str, runtime: str, threads: int, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", model, runtime, "--threads", str(threads), "--mode", mode]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    assert process.stdout.readline() == "ready\n", f"{runtime} of {model} did not start"
    return process


def request(process: subprocess.Popen[str], message: str) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{message}\n")
    process.stdin.flush()
    return process.stdout.readline()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="model file for torch; default: the bundled one")
    parser.add_argument("--exported", nargs="*", default=[], help="folders of fusioner export")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--mode", default="whole")
    parser.add_argument("--pictures", type=int, default=0, help="images in the folder; 0: no folder")
    parser.add_argument("--child", nargs=2, metavar=("MODEL", "RUNTIME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, runtime = args.child
        run_child(model, runtime, args.threads[0], args.mode)
        return
    print(f"mode {args.mode}, medians of {args.repeats}; CPU: CPU time per image\n")
    print("| | threads | latency | CPU | CPU relative to torch | folder, images/s | peak memory | equal pixels |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for threads in args.threads:
        compare(find_candidates(args.model, args.exported), threads, args)
    print(f"\nload {os.getloadavg()[0]:.1f}")


def compare(candidates: list[Candidate], threads: int, args: argparse.Namespace) -> None:
    """Print a row per contender; the first is the reference."""
    running = [(name, start(model, runtime, threads, args.mode)) for name, model, runtime in candidates]
    times: dict[str, list[list[float]]] = {name: [] for name, _ in running}
    for _ in range(args.repeats):
        for name, process in running:
            times[name].append([float(part) for part in request(process, "1").split()])
    rates = dict.fromkeys(times, "")
    for name, process in running if args.pictures else ():
        rates[name] = f"{args.pictures / float(request(process, str(args.pictures)).split()[0]):.2f}"
    ends = {name: json.loads(request(process, "end")) for name, process in running}
    maps = {name: bytes.fromhex(hexadecimal) for name, (_, hexadecimal) in ends.items()}
    first = next(iter(times))
    for name, runs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
        ratio = statistics.median(run[1] / base[1] for run, base in zip(runs, times[first], strict=True))
        equal, memory = f"{_equal_fraction(maps[name], maps[first]):.2%}", ends[name][0] / 2**20
        print(
            f"| {name} | {threads} | {wall:.3f} s | {cpu:.3f} s | {ratio:.2f} | {rates[name]} | {memory:.0f} MiB | "
            f"{equal} |",
            flush=True,
        )


def _equal_fraction(label_map: bytes, reference: bytes) -> float:
    import numpy as np

    first, second = (np.frombuffer(content, np.uint8) for content in (label_map, reference))
    return float((first == second).mean())


if __name__ == "__main__":
    main()
