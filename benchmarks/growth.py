"""Measure how the time of a training step grows with the numbers of labels and tokens.

    python benchmarks/growth.py --rounds 3

The network of the `small` preset with a random posterior; CPU seconds of one thread, forward and backward.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

SHAPE = FusionerConfig(
    image_dim=384, text_dim=384, width=128, layers=2, heads=4, decoder_widths=(64, 32), decoder_norm="layer",
    similarity="posterior", similarity_dim=1000, logit_bias=True,
)  # fmt: skip


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median CPU time of a call, after one call to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def training_step(model: Fusioner, side: int, labels: int) -> Callable[[], None]:
    visual, posterior = torch.randn(1, 384, side, side), torch.rand(1, 1000, side, side)
    tokens = torch.cat([F.normalize(visual, dim=1), F.normalize(posterior, dim=1)], dim=1)
    text = F.normalize(torch.randn(1, labels, 384), dim=-1)
    return lambda: model(tokens, text, (84, 84)).square().mean().backward()


def count_flops(work: Callable[[], object]) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def print_table(rounds: int) -> None:
    model = Fusioner(SHAPE)
    print("| labels | tokens | s | GFLOP | GFLOP/s |\n|---|---|---|---|---|")
    for side, labels in ((16, 1), (16, 10), (16, 50), (16, 200), (24, 4), (32, 4), (48, 4), (64, 4)):
        work = training_step(model, side, labels)
        seconds, flops = cpu_seconds(work, rounds), count_flops(work)
        speed = flops / seconds / 1e9
        print(f"| {labels} | {side} x {side} | {seconds:.2f} | {flops / 1e9:.1f} | {speed:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print_table(args.rounds)


if __name__ == "__main__":
    main()
