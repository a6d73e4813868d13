"""The share of a large matrix product's speed that encoders and fusion reach, and where a training step's time goes.

    python benchmarks/peak_share.py --rounds 3 [--paper]

CPU seconds of one thread; every round times a 2048 x 2048 torch.mm and all parts, medians. `--paper` adds the paper's
sizes, which take minutes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from growth import SHAPE, operations, step
from torch import nn

from fusioner.encoders.registry import build_image_encoder
from fusioner.model.config import FusionerConfig
from fusioner.model.decoder import Decoder
from fusioner.model.fusion import Fusion
from fusioner.model.fusioner import Fusioner


def parts(paper: bool) -> dict[str, Callable[[], object]]:
    """What is timed."""
    work: dict[str, Callable[[], object]] = {}
    for name in ("dinov2-s-embedded", "effnet-lite2"):
        encoder, image = build_image_encoder(name), torch.rand(1, 3, 336, 336)
        work[f"encoder {name}, 336 px"] = lambda encoder=encoder, image=image: encoder(image)
    sizes = [("small", SHAPE, 16, 24)] + ([("paper", FusionerConfig(), 1, 16)] if paper else [])
    for name, shape, b, side in sizes:
        visual = F.normalize(torch.randn(b, side * side, shape.image_dim), dim=-1)
        text = F.normalize(torch.randn(b, 1, shape.text_dim), dim=-1)
        fusion: Fusion = Fusion(shape)
        decoder: Any = Decoder(shape)
        decoder.to(memory_format=torch.channels_last)
        grid = torch.randn(b, side, side, shape.width).movedim(-1, 1).requires_grad_()
        work[f"fusion {name}, {b} x {side} x {side}, forward and backward"] = (
            lambda fusion=fusion, visual=visual, text=text: _backward(*fusion(visual, text))
        )
        work[f"decoder {name}, {b} x {side} x {side}, forward and backward"] = lambda decoder=decoder, grid=grid: (
            _backward(decoder(grid))
        )
    if paper:
        from paper_size import SIDE, clip_large

        large, image = clip_large(), torch.rand(1, 3, SIDE, SIDE)
        work["encoder CLIP ViT-L/14, 224 px"] = lambda: large(image)
    return work


def _backward(*outputs: torch.Tensor) -> None:
    torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paper", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    square, work = torch.randn(2048, 2048), parts(given.paper)
    cost = {name: operations(one) for name, one in work.items()}  # warms, too
    rounds = []
    for _ in range(given.rounds):
        peak = 2 * len(square) ** 3 / cpu(lambda: torch.mm(square, square))
        rounds.append({"": peak} | {name: cost[name] / cpu(one) for name, one in work.items()})
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    shares = {name: statistics.median(one[name] / one[""] for one in rounds) for name in work}
    print(f"torch.mm of 2048 x 2048: {median[''] / 1e9:.0f} GFLOP/s, median of {given.rounds} rounds\n")
    print("| | GFLOP | GFLOP/s | of the matrix product |\n|---|---|---|---|")
    for name in work:
        print(f"| {name} | {cost[name] / 1e9:.1f} | {median[name] / 1e9:.0f} | {shares[name]:.0%} |")
    model: nn.Module = Fusioner(SHAPE)
    train = step(model, 24, 16)  # type: ignore[arg-type]
    train()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train()
    found = sorted(profile.key_averages(), key=lambda one: -one.self_cpu_time_total)
    total = sum(one.self_cpu_time_total for one in found)
    print("\nA training step of the small network, 16 labels on 24 x 24 tokens:\n\n| operation | share |\n|---|---|")
    for one in found[:12]:
        print(f"| `{one.key}` | {one.self_cpu_time_total / total:.1%} |")


if __name__ == "__main__":
    main()
