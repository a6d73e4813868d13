"""Compare the compute of the official recipe for a fold of PASCAL with that of the `small` preset.

    python benchmarks/time_to_quality.py --official DIR --root data/pascal --fold 2 --steps 20

The official recipe is not run to its end: its time is the measured seconds per image times its 510 epochs of all
(image, class) pairs. Ours is `fusioner train --preset small` in a separate process: encoding every image once, and 300
steps, extrapolated from `--steps`. CPU seconds of one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from official import Official

from fusioner.training.dataset import build_corpus, open_split
from fusioner.training.presets import SMALL


def child_cpu_seconds() -> float:
    return os.times().children_user + os.times().children_system


def ours(root: Path, fold: str, steps: int, folder: Path) -> float:
    """Return the CPU seconds of a training in a separate process; the first one fills the cache."""
    arguments = ["train", "pascal", "--root", str(root), "--fold", fold, "--cache", str(folder / "cache")]
    arguments += ["--steps", str(steps), "--out", str(folder / f"run{steps}")]
    before = child_cpu_seconds()
    subprocess.run(
        [sys.executable, "-m", "fusioner", *arguments], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return child_cpu_seconds() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--root", type=Path, required=True, help="folder of PASCAL VOC")
    parser.add_argument("--fold", default="2")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of ours")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus = build_corpus([open_split("pascal", args.root, int(args.fold))], "pairs")
    images = len({sample.item.id for sample in corpus.samples})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        first = ours(args.root, args.fold, 1, folder)  # includes encoding
        start = ours(args.root, args.fold, 2, folder)  # start-up, closed-set head and validation
        timed = ours(args.root, args.fold, 2 + args.steps, folder)
    step = (timed - start) / args.steps
    our_total = first + SMALL.optim.steps * step
    official = Official(args.official.resolve())
    image, mask = torch.randn(1, 3, 224, 224), torch.zeros(1, 224, 224)
    mask[:, 40:140, 60:180] = 1
    times = []
    for _ in range(args.rounds + 1):
        start_time = time.process_time()
        official.gradients(image, mask, "thing")
        times.append(time.process_time() - start_time)
    seconds_per_image = statistics.median(times[1:])
    official_total = seconds_per_image * len(corpus.samples) * official.epochs
    print(f"fold {args.fold}: {len(corpus.samples)} pairs on {images} images\n")
    print("| | CPU time |\n|---|---|")
    recipe = f"{official.epochs} epochs x {len(corpus.samples)} pairs x {seconds_per_image:.1f} s"
    print(f"| official: {recipe} | {official_total / 3600:.0f} h |")
    print(
        f"| ours: start and cache {first / 60:.1f} min + {SMALL.optim.steps} steps x {step:.2f} s "
        f"| {our_total / 60:.1f} min |"
    )
    print(f"\nratio {official_total / our_total:.0f}")


if __name__ == "__main__":
    main()
