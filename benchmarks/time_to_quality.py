"""Compute that the official recipe takes for a fold of PASCAL, and that the `small` preset takes for the same fold.

    python benchmarks/time_to_quality.py --official DIR --root shared/data/pascal --fold 2 --steps 20

Nobody trains the official recipe to its end here. Its time is measured seconds an image times what it is shown: 510
epochs of every (image, class) pair. Ours is `fusioner train --preset small` in a process of its own: encoding every
image once, and its 300 steps; `--steps` and `--encode` measure a part of both and scale it. CPU seconds of one thread.
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


def children() -> float:
    return os.times().children_user + os.times().children_system


def ours(root: Path, fold: str, steps: int, folder: Path) -> float:
    """CPU seconds of a training in an own process; the cache is filled by the first."""
    words = ["train", "pascal", "--root", str(root), "--fold", fold, "--cache", str(folder / "cache")]
    before = children()
    command = [sys.executable, "-m", "fusioner", *words, "--steps", str(steps), "--out", str(folder / f"run{steps}")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return children() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--root", type=Path, required=True, help="a PASCAL tree")
    parser.add_argument("--fold", default="2")
    parser.add_argument("--steps", type=int, default=20, help="of ours, the rest follows from them")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    corpus = build_corpus([open_split("pascal", given.root, int(given.fold))], "pairs")
    images = len({sample.item.id for sample in corpus.samples})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = ours(given.root, given.fold, 1, folder)  # encodes
        start = ours(given.root, given.fold, 2, folder)  # starts up, remembers, judges
        some = ours(given.root, given.fold, 2 + given.steps, folder)
    step = (some - start) / given.steps
    small = first + SMALL.optim.steps * step
    official = Official(given.official.resolve())
    picture, mask = torch.randn(1, 3, 224, 224), torch.zeros(1, 224, 224)
    mask[:, 40:140, 60:180] = 1
    taken = []
    for _ in range(given.rounds + 1):
        begun = time.process_time()
        official.gradients(picture, mask, "thing")
        taken.append(time.process_time() - begun)
    image = statistics.median(taken[1:])
    whole = image * len(corpus.samples) * official.epochs
    print(f"fold {given.fold}: {len(corpus.samples)} pairs on {images} images\n")
    print("| | CPU time |\n|---|---|")
    print(
        f"| official: {official.epochs} epochs x {len(corpus.samples)} pairs x {image:.1f} s | {whole / 3600:.0f} h |"
    )
    print(
        f"| ours: start and cache {first / 60:.1f} min + {SMALL.optim.steps} steps x {step:.2f} s "
        f"| {small / 60:.1f} min |"
    )
    print(f"\nratio {whole / small:.0f}")


if __name__ == "__main__":
    main()
