"""Real photographs through `fusioner batch`, killed with kill -9 at random places and started again.

    python benchmarks/batch_kill9.py ../shared/data/pascal ../shared/data/coco --kills 5
    python benchmarks/batch_kill9.py ../shared/data/pascal --engine ray --kills 3 --images 200

Files that are no pictures are mixed in. At the end every result file is read: each image of the input has one row, the
bad ones and no others have an error, and every mask decodes to its size and area. Any other outcome ends with exit
code 1. ClosedSetHead is that of all processes of the run together (PSS), sampled every two seconds.
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

LABELS = ("person", "cat", "dog")
BAD = {"none.jpg": None, "empty.jpg": b"", "words.jpg": b"no picture", "cut.png": b"\x89PNG\r\n\x1a\n" + bytes(20)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs="+", help="folders of .jpg files, with folders inside")
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--images", type=int, default=10**9, help="at most so many photographs")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--model", help="model file; default: the embedded one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the results here")
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
    begun, kills, samples, said = time.monotonic(), 0, [], ""
    places = sorted(rng.uniform(0.02, 0.9) for _ in range(options.kills))
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        while process.poll() is None and (kills == len(places) or progress(out) < places[kills]):
            samples.append((progress(out), memory(process.pid)))
            time.sleep(2)
        time.sleep(rng.uniform(0, 5) if kills < len(places) else 0)
        if process.poll() is not None:
            said = process.communicate()[0]
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        print(f"kill {kills} after {time.monotonic() - begun:.0f} s: {progress(out):.0%} done", flush=True)
    print(said.strip())
    problems = [] if process.returncode in (0, 2) else [f"exit code {process.returncode}"]
    problems += check(out, names)
    table(options, names, kills, time.monotonic() - begun, samples)
    print("\n".join(problems) or "every image once, none lost, none double; the bad files and no others have an error")
    return 1 if problems else 0


def make_input(options: argparse.Namespace, folder: Path, rng: random.Random) -> list[str]:
    """A list file of photographs in random order, bad files among them -> its lines."""
    names = [str(path) for folder in options.photographs for path in sorted(folder.resolve().rglob("*.jpg"))]
    rng.shuffle(names)
    names = names[: options.images]
    for name, content in BAD.items():
        if content is not None:
            (folder / name).write_bytes(content)
        names.insert(rng.randrange(len(names)), name)
    (folder / "list.txt").write_text("\n".join(names) + "\n", "utf-8")
    (folder / "labels.txt").write_text("\n".join(LABELS), "utf-8")
    return names


def progress(out: Path) -> float:
    done = len(list(out.glob("shards/*/part-*.parquet")))
    shards = (out / "plan" / "shards.bin").stat().st_size // 24 if (out / "plan").is_dir() else 0
    return done / shards if shards else 0.0


def memory(root: int) -> int:
    """PSS of a process and all below it, bytes (Linux)."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    total = 0
    for pid in family:
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
        problems.append("the rows' names are not the input's")
    wrong = [row["image"] for row in rows if (row["error"] is not None) != (row["image"] in BAD)]
    problems += [f"error, or none, where it should not be: {wrong[:5]}"] if wrong else []
    for row in rows:
        for one in row["segments"] or ():
            area = int(coco.area({"size": [row["height"], row["width"]], "counts": one["rle"].encode()}))
            if area != one["area"]:
                problems.append(f"{row['image']}: {one['label']} has {one['area']} pixels, its mask {area}")
    left = [path.name for path in out.rglob(".part-*")]
    return problems + ([f"left behind: {left[:5]}"] if left else [])


def table(options: argparse.Namespace, names: list[str], kills: int, seconds: float, samples: list) -> None:
    quarters = [[size for done, size in samples if q / 4 <= done < (q + 1) / 4] for q in range(4)]
    shown = " / ".join(f"{statistics.median(some) / 1e9:.2f}" if some else "-" for some in quarters)
    print(
        "| engine | images | workers | kills | seconds in all | images/s | memory by quarter, GB (median) | most, GB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    most = max((size for _, size in samples), default=0) / 1e9
    counts = f"| {options.engine} | {len(names)} | {options.workers} | {kills} | {seconds:.0f} "
    print(counts + f"| {len(names) / seconds:.2f} | {shown} | {most:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
