"""Measure the speed of encoders and fusion relative to a large matrix product, and profile a training step.

    python benchmarks/peak_share.py --rounds 3 [--paper]

CPU seconds of one thread; every round times a 2048 x 2048 torch.mm and all parts; prints medians. `--paper` adds the
paper's sizes, which take minutes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from growth import SHAPE, count_flops, training_step
from torch import nn

from fusioner.encoders.registry import build_image_encoder
from fusioner.model.config import FusionerConfig
from fusioner.model.decoder import Decoder
from fusioner.model.fusion import Fusion
from fusioner.model.fusioner import Fusioner


def parts(paper: bool) -> dict[str, Callable[[], object]]:
    """Return the parts to time, by name."""
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
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paper", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    square, work = torch.randn(2048, 2048), parts(args.paper)
    flops = {name: count_flops(part) for name, part in work.items()}  # also warms up
    rounds = []
    for _ in range(args.rounds):
        peak = 2 * len(square) ** 3 / cpu_seconds(lambda: torch.mm(square, square))
        rounds.append({"": peak} | {name: flops[name] / cpu_seconds(part) for name, part in work.items()})
    median = {name: statistics.median(speeds[name] for speeds in rounds) for name in rounds[0]}
    relative = {name: statistics.median(speeds[name] / speeds[""] for speeds in rounds) for name in work}
    print(f"torch.mm of 2048 x 2048: {median[''] / 1e9:.0f} GFLOP/s, median of {args.rounds} rounds\n")
    print("| | GFLOP | GFLOP/s | relative to torch.mm |\n|---|---|---|---|")
    for name in work:
        print(f"| {name} | {flops[name] / 1e9:.1f} | {median[name] / 1e9:.0f} | {relative[name]:.0%} |")
    model: nn.Module = Fusioner(SHAPE)
    train = training_step(model, 24, 16)  # type: ignore[arg-type]
    train()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("\nA training step of the small network, 16 labels on 24 x 24 tokens:\n\n| operation | share |\n|---|---|")
    for event in events[:12]:
        print(f"| `{event.key}` | {event.self_cpu_time_total / total:.1%} |")


if __name__ == "__main__":
    main()
