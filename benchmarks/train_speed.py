"""Measure training images per second at the paper's size: the official code and ours, alternating in every round.

    python benchmarks/train_speed.py --official DIR --batch 2 --rounds 3

CLIP ViT-L/14 sizes with random weights, 224 px, 12 x 512 fusion, 4 x 512 decoder, one class per image, fp32. Gradients
and weight updates are timed separately and combined for a batch of 32, the official size. CPU seconds of one thread,
which hardly depend on other load; with `--threads` above 1 wall-clock seconds.
"""

import argparse
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from official import Official
from paper_size import SIDE, clip_large, training_steps

GFLOP_PER_IMAGE = {"official": 952.0, "text cached": 532.0, "everything cached": 370.0}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("official", "ours"), help="run one of them, to measure its memory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter

    def seconds(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    images, masks = torch.randn(args.batch, 3, SIDE, SIDE), torch.zeros(args.batch, SIDE, SIDE)
    masks[:, 40:140, 60:180] = 1
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "ours":
            official = Official(args.official.resolve())
            steps["official"] = (lambda: official.gradients(images, masks, "thing"), official.update)
        if args.only != "official":
            steps |= training_steps(Path(folder), args.batch, clip_large())
        for gradients, update in steps.values():  # warm-up
            gradients()
            update()
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
        rounds, peaks = [], []
        square = torch.randn(2048, 2048)
        for _ in range(args.rounds):
            peaks.append(2 * len(square) ** 3 / seconds(lambda: torch.mm(square, square)) / 1e9)
            rounds.append(
                {name: (seconds(grads) / args.batch, seconds(update)) for name, (grads, update) in steps.items()}
            )
            print(f"mm {peaks[-1]:.0f} GFLOP/s, (s per image, s per update): {rounds[-1]}", flush=True)
    print(f"{args.threads} threads, batch {args.batch}, median of {args.rounds} rounds")
    print(f"torch.mm of 2048 x 2048: {statistics.median(peaks):.0f} GFLOP/s\n")
    print(
        "| | s per image | update, s | images/s at batch 32 | speed-up | bound by arithmetic | share of it | GFLOP/s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    total = {}
    for name in steps:
        image, update = (statistics.median(times[name][part] for times in rounds) for part in (0, 1))
        total[name] = image + update / BATCH
        ratio = total.get("official", math.nan) / total[name]
        bound = GFLOP_PER_IMAGE["official"] / GFLOP_PER_IMAGE[name]
        print(
            f"| {name} | {image:.2f} | {update:.2f} | {1 / total[name]:.3f} | {ratio:.2f} | {bound:.2f} | "
            f"{ratio / bound:.0%} | {GFLOP_PER_IMAGE[name] / image:.0f} |"
        )


if __name__ == "__main__":
    main()
