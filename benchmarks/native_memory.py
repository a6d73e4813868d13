"""Peak memory of a 50-megapixel photograph at native resolution, in a process of its own for every number of labels.

    python benchmarks/native_memory.py --megapixels 50 --labels 3 20

The model inside the package; only the first windows are really encoded, all others take the tokens of one of these, for
a thousand windows take a CPU a quarter of an hour and each needs what the one before it needed. All of them go through
fusion, decoding and laying.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.loading import load

ENCODED = 3


class FirstWindows(nn.Module):
    """An image encoder that encodes `ENCODED` times, then repeats itself."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.said = encoder, list[Tensor]()
        self.turns: Iterator[int] = itertools.count()

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.encoder, name)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Tokens of the right shape."""
        turn = next(self.turns)
        if turn < ENCODED:
            self.said.append(self.encoder(images))
        return self.said[turn % ENCODED].clone()


def measure(megapixels: float, labels: int) -> None:
    """Segment one picture and print what it took."""
    segmenter = load(device="cpu")
    encoder: nn.Module = segmenter.image_encoder  # type: ignore[assignment]
    segmenter.image_encoder = FirstWindows(encoder)  # type: ignore[assignment]
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (height, round(height * 1.5), 3), dtype=np.uint8)
    start, seen = time.monotonic(), 0

    def count(done: int, total: int) -> None:
        nonlocal seen
        seen = total

    result = segmenter(image, [f"thing {i}" for i in range(labels)], mode="slide", on_progress=count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    size = f"{result.width} x {result.height}"
    print(f"| {size} | {labels} | {seen} | {peak:.2f} GiB | {time.monotonic() - start:.0f} s |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megapixels", type=float, default=50.0)
    parser.add_argument("--labels", type=int, nargs="+", default=[3, 20])
    parser.add_argument("--here", action="store_true", help="measure in this process")
    given = parser.parse_args()
    if given.here:
        measure(given.megapixels, given.labels[0])
        return
    print("| picture | labels | windows | peak memory | time |\n|---|---|---|---|---|", flush=True)
    for labels in given.labels:
        words = ["--here", "--megapixels", str(given.megapixels), "--labels", str(labels)]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
