"""How a training step grows with labels and tokens.

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


def cpu(work: Callable[[], object], rounds: int) -> float:
    work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def step(model: Fusioner, side: int, labels: int) -> Callable[[], None]:
    visual, p = torch.randn(1, 384, side, side), torch.rand(1, 1000, side, side)
    tokens = torch.cat([F.normalize(visual, dim=1), F.normalize(p, dim=1)], dim=1)
    text = F.normalize(torch.randn(1, labels, 384), dim=-1)
    return lambda: model(tokens, text, (84, 84)).square().mean().backward()


def operations(work: Callable[[], object]) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def network(rounds: int) -> None:
    model = Fusioner(SHAPE)
    print("| labels | tokens | s | GFLOP | GFLOP/s |\n|---|---|---|---|---|")
    for side, labels in ((16, 1), (16, 10), (16, 50), (16, 200), (24, 4), (32, 4), (48, 4), (64, 4)):
        work = step(model, side, labels)
        taken, cost = cpu(work, rounds), operations(work)
        print(f"| {labels} | {side} x {side} | {taken:.2f} | {cost / 1e9:.1f} | {cost / taken / 1e9:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    network(given.rounds)


if __name__ == "__main__":
    main()
