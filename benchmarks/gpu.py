"""Measure the throughput of a device: encoders, images per second of predict, training steps per second.

    python benchmarks/gpu.py --device cuda --batch 32
    python benchmarks/gpu.py --device cpu --batch 1 --side 56 --rounds 1 --skip-compile

Medians of wall-clock seconds with the device synchronised. Encoders are compared with a 4096 x 4096 bf16 torch.mm (on
a CPU 1024 x 1024, fp32). Predict is timed from photographs in memory to masks; `predict_folder.py --device cuda`
includes files. A training step is forward, backward and AdamW's update of preset `small` with 16 labels on cached
features.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from growth import SHAPE, count_flops

from fusioner.encoders.registry import build_image_encoder
from fusioner.loading import load
from fusioner.model.fusioner import Fusioner

LABELS = ["cat", "person", "cup", "dog", "table", "car", "sofa", "chair", "bird", "bottle"]
Row = tuple[str, float, str]  # name, value, unit


def seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median time of a call, after two calls to warm up."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def encoder(device: torch.device, batch: int, side: int, rounds: int) -> Iterator[Row]:
    n, dtype = (4096, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    square = torch.randn(n, n, device=device, dtype=dtype)
    peak = 2 * n**3 / seconds(lambda: square @ square, device, rounds)
    yield "matrix product", peak / 1e12, "TFLOP/s"
    for name in ("dinov2-s-embedded", "dinov2-s-embedded+effnet-lite2"):
        model, images = build_image_encoder(name), torch.rand(1, 3, side, side)
        flops = batch * count_flops(lambda: model(images))  # noqa: B023
        model, images = model.to(device), images.expand(batch, -1, -1, -1).to(device)  # type: ignore[attr-defined]

        def encode() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                model(images)  # noqa: B023

        encode_seconds = seconds(encode, device, rounds)
        yield f"encoder {name}", batch / encode_seconds, "images/s"
        yield f"encoder {name}, relative to the matrix product", 100 * flops / encode_seconds / peak, "%"


def predict(device: torch.device, batch: int, side: int, rounds: int) -> Iterator[Row]:
    segmenter = load(device=str(device), runtime="torch")
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (side, 4 * side // 3, 3), np.uint8) for _ in range(batch)]
    for mode in ("whole", "multicrop"):
        options = segmenter.resolve(mode=mode)  # pyright: ignore[reportArgumentType]

        def predict_batch() -> None:
            for encoded in segmenter.encode_batch(photos, options):  # noqa: B023
                segmenter.decide(encoded, LABELS, segmenter.low_res_logits(encoded, LABELS))

        yield f"predict, mode {mode}, {len(LABELS)} labels", batch / seconds(predict_batch, device, rounds), "images/s"


def train(device: torch.device, batch: int, side: int, rounds: int, compiled: bool) -> Iterator[Row]:
    grid = side // 14
    visual, scores = (torch.randn(batch, width, grid, grid, device=device) for width in (384, 1000))
    tokens = torch.cat([F.normalize(visual, dim=1), scores.softmax(dim=1)], dim=1)
    text = F.normalize(torch.randn(batch, 16, 384, device=device), dim=-1)
    for name, dtype, compile in (
        ("fp32", None, False),
        ("bf16", torch.bfloat16, False),
        ("bf16", torch.bfloat16, True),
    ):
        if compile and not compiled:
            continue
        model = Fusioner(SHAPE).to(device)
        network = torch.compile(model) if compile else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

        def step() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):  # noqa: B023
                loss = network(tokens, text, (84, 84)).float().square().mean()  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            optimizer.zero_grad()  # noqa: B023

        suffix = ", compiled" if compile else ""
        yield f"training step, batch {batch}, {name}{suffix}", 1 / seconds(step, device, rounds), "steps/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=336, help="image height, px")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--skip-compile", action="store_true")
    args = parser.parse_args()
    device, size = torch.device(args.device), (args.batch, args.side, args.rounds)
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}\n")
    print("| | | |\n|---|---|---|")
    parts = encoder(device, *size), predict(device, *size), train(device, *size, not args.skip_compile)
    for part in parts:
        for name, value, unit in part:
            print(f"| {name} | {value:.3g} | {unit} |", flush=True)


if __name__ == "__main__":
    main()
