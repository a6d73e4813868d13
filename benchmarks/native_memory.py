"""Measure the peak memory of mode slide on a 50-megapixel image, in a separate process per number of labels.

    python benchmarks/native_memory.py --megapixels 50 --labels 3 20

Uses the bundled model. Only the first windows are encoded and all others reuse their tokens, because a thousand windows
take a quarter of an hour on a CPU; every window goes through fusion, decoder and blending.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.loading import load

NUM_ENCODED = 3


class RepeatingEncoder(nn.Module):
    """An image encoder that encodes `NUM_ENCODED` times, then repeats its outputs."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.outputs = encoder, list[Tensor]()
        self.calls: Iterator[int] = itertools.count()

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.encoder, name)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode the images, or return the tokens of an earlier call."""
        call = next(self.calls)
        if call < NUM_ENCODED:
            self.outputs.append(self.encoder(images))
        return self.outputs[call % NUM_ENCODED].clone()


def measure(megapixels: float, labels: int) -> None:
    """Segment one random image and print peak memory and time."""
    segmenter = load(device="cpu", runtime="torch")
    network: Any = segmenter.network
    network.image_encoder = RepeatingEncoder(network.image_encoder)
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (height, round(height * 1.5), 3), dtype=np.uint8)
    start, windows = time.monotonic(), 0

    def count(done: int, total: int) -> None:
        nonlocal windows
        windows = total

    result = segmenter(image, [f"thing {i}" for i in range(labels)], mode="slide", on_progress=count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    size = f"{result.width} x {result.height}"
    print(f"| {size} | {labels} | {windows} | {peak:.2f} GiB | {time.monotonic() - start:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megapixels", type=float, default=50.0)
    parser.add_argument("--labels", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--in-process", action="store_true", help="measure in this process")
    args = parser.parse_args()
    if args.in_process:
        measure(args.megapixels, args.labels[0])
        return
    print("| image | labels | windows | peak memory | time |\n|---|---|---|---|---|", flush=True)
    for labels in args.labels:
        flags = ["--in-process", "--megapixels", str(args.megapixels), "--labels", str(labels)]
        subprocess.run([sys.executable, __file__, *flags], check=True)


if __name__ == "__main__":
    main()
