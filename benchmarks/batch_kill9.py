"""Run `fusioner batch` on photographs, kill it with SIGKILL at random moments, restart it, and check the results.

    python benchmarks/batch_kill9.py data/pascal data/coco --kills 5
    python benchmarks/batch_kill9.py data/pascal --engine ray --kills 3 --images 200

The input includes files that are not images. At the end every result file is read: each image of the input must have
one row, exactly the invalid files an error, and every mask must decode to its size and area; otherwise the exit code is
1. Memory is that of all processes of the run together (PSS), sampled every two seconds.
"""

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.dataset as ds
from pycocotools import mask as coco

from fusioner.batch.plan import Plan

LABELS = ("person", "cat", "dog")
INVALID = {"none.jpg": None, "empty.jpg": b"", "words.jpg": b"no picture", "cut.png": b"\x89PNG\r\n\x1a\n" + bytes(20)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="+", help="folders searched recursively for .jpg files")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--images", type=int, default=10**9, help="largest number of photographs")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--model", help="model file; default: the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the results; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> int:
    rng, out = random.Random(options.seed), options.out or folder / "out"
    names = make_input(options, folder, rng)
    command = [sys.executable, "-m", "fusioner", "batch", str(folder / "list.txt"), "--labels"]
    command += [str(folder / "labels.txt"), "--out", str(out), "--engine", options.engine]
    command += ["--workers", str(options.workers), "--shard-size", str(options.shard_size), "--hourly-price", "0.05"]
    command += ["--model", options.model] if options.model else []
    start, kills, samples, output = time.monotonic(), 0, [], ""
    kill_points = sorted(rng.uniform(0.02, 0.9) for _ in range(options.kills))  # fractions of finished shards
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        while process.poll() is None and (kills == len(kill_points) or progress(out) < kill_points[kills]):
            samples.append((progress(out), memory_usage(process.pid)))
            time.sleep(2)
        time.sleep(rng.uniform(0, 5) if kills < len(kill_points) else 0)
        if process.poll() is not None:
            output = process.communicate()[0]
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        print(f"kill {kills} after {time.monotonic() - start:.0f} s: {progress(out):.0%} done", flush=True)
    print(output.strip())
    problems = [] if process.returncode in (0, 2) else [f"exit code {process.returncode}"]
    problems += check(out, names)
    print_table(options, names, kills, time.monotonic() - start, samples)
    print("\n".join(problems) or "every image has one row; exactly the invalid files have an error")
    return 1 if problems else 0


def make_input(options: argparse.Namespace, folder: Path, rng: random.Random) -> list[str]:
    """Write a list file of photographs and invalid files in random order, and return its lines."""
    names = [str(path) for root in options.photographs for path in sorted(root.resolve().rglob("*.jpg"))]
    rng.shuffle(names)
    names = names[: options.images]
    for name, content in INVALID.items():
        if content is not None:
            (folder / name).write_bytes(content)
        names.insert(rng.randrange(len(names)), name)
    (folder / "list.txt").write_text("\n".join(names) + "\n", "utf-8")
    (folder / "labels.txt").write_text("\n".join(LABELS), "utf-8")
    return names


def progress(out: Path) -> float:
    done = len(list(out.glob("shards/*/part-*.parquet")))
    shards = Plan(out).shards if (out / "plan").is_dir() else 0
    return done / shards if shards else 0.0


def memory_usage(root: int) -> int:
    """Return the PSS of a process and all its descendants, bytes (Linux)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    pids = {root}
    while children := {pid for pid, parent in parents.items() if parent in pids} - pids:
        pids |= children
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        except OSError:
            continue
    return total


def check(out: Path, names: list[str]) -> list[str]:
    rows = ds.dataset(out / "shards").to_table().sort_by("index").to_pylist()
    problems = []
    if [row["index"] for row in rows] != list(range(len(names))):
        problems.append(f"{len(rows)} rows for {len(names)} images, or an image twice")
    if [row["image"] for row in rows] != names:
        problems.append("the image names of the rows differ from the input")
    misjudged = [row["image"] for row in rows if (row["error"] is not None) != (row["image"] in INVALID)]
    problems += [f"unexpected or missing error: {misjudged[:5]}"] if misjudged else []
    for row in rows:
        for segment in row["segments"] or ():
            area = int(coco.area({"size": [row["height"], row["width"]], "counts": segment["rle"].encode()}))
            if area != segment["area"]:
                problems.append(f"{row['image']}: {segment['label']} has {segment['area']} pixels, its mask {area}")
    leftover = [path.name for path in out.rglob(".part-*")]
    return problems + ([f"left behind: {leftover[:5]}"] if leftover else [])


def print_table(options: argparse.Namespace, names: list[str], kills: int, seconds: float, samples: list) -> None:
    quarters = [[size for done, size in samples if q / 4 <= done < (q + 1) / 4] for q in range(4)]
    medians = " / ".join(f"{statistics.median(sizes) / 1e9:.2f}" if sizes else "-" for sizes in quarters)
    print("| engine | images | workers | kills | seconds | images/s | median memory by quarter, GB | peak, GB |")
    print("|---|---|---|---|---|---|---|---|")
    peak = max((size for _, size in samples), default=0) / 1e9
    counts = f"| {options.engine} | {len(names)} | {options.workers} | {kills} | {seconds:.0f} "
    print(counts + f"| {len(names) / seconds:.2f} | {medians} | {peak:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
