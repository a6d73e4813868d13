"""Training images a second at the paper's size: the official code and ours, one after the other in every round.

    python benchmarks/train_speed.py --official DIR --batch 2 --rounds 3

CLIP ViT-L/14 sizes with random weights, 224 px, 12 x 512 fusion, 4 x 512 decoder, one class an image, fp32. Gradients
and the update of the weights are timed apart, and put together as in a batch of 32, the official size. Seconds are CPU
seconds of one thread, which other work on the machine hardly changes; `--threads` above 1 takes wall-clock seconds.
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
from paper_size import SIDE, clip_large, training

ARITHMETIC = {"official": 952.0, "text cached": 532.0, "everything cached": 370.0}  # GFLOP an image
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--official", type=Path, required=True, help="checkout of the official repository")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("official", "ours"), help="alone, to see the memory it takes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter

    def seconds(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    images, masks = torch.randn(given.batch, 3, SIDE, SIDE), torch.zeros(given.batch, SIDE, SIDE)
    masks[:, 40:140, 60:180] = 1
    ways = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "ours":
            official = Official(given.official.resolve())
            ways["official"] = (lambda: official.gradients(images, masks, "thing"), official.update)
        if given.only != "official":
            ways |= training(Path(folder), given.batch, clip_large())
        for gradients, update in ways.values():  # warm
            gradients()
            update()
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", flush=True)
        rounds, peaks = [], []
        square = torch.randn(2048, 2048)
        for _ in range(given.rounds):
            peaks.append(2 * len(square) ** 3 / seconds(lambda: torch.mm(square, square)) / 1e9)
            rounds.append({name: (seconds(one) / given.batch, seconds(two)) for name, (one, two) in ways.items()})
            print(f"mm {peaks[-1]:.0f} GFLOP/s, (s an image, s an update): {rounds[-1]}", flush=True)
    print(f"{given.threads} threads, batch {given.batch}, median of {given.rounds} rounds")
    print(f"torch.mm of 2048 x 2048: {statistics.median(peaks):.0f} GFLOP/s\n")
    print("| | s an image | update, s | images/s at batch 32 | ratio | arithmetic | of it | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    cost = {}
    for name in ways:
        image, update = (statistics.median(one[name][part] for one in rounds) for part in (0, 1))
        cost[name] = image + update / BATCH
        ratio, bound = cost.get("official", math.nan) / cost[name], ARITHMETIC["official"] / ARITHMETIC[name]
        print(
            f"| {name} | {image:.2f} | {update:.2f} | {1 / cost[name]:.3f} | {ratio:.2f} | {bound:.2f} | "
            f"{ratio / bound:.0%} | {ARITHMETIC[name] / image:.0f} |"
        )


if __name__ == "__main__":
    main()
