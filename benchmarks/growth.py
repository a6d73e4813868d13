"""How a training step grows with labels and tokens, and reading a batch with the size of the cache.

    python benchmarks/growth.py --rounds 3 --views 1000 10000 100000 1000000

The network of the `small` preset with a random posterior; CPU seconds of one thread, forward and backward. The cache is
simulated: real manifests, files of the right size without content, so that opening and finding are what is measured.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fusioner.features.cache import Shelf
from fusioner.features.shard import Entry, Manifest
from fusioner.features.space import Space
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

SHAPE = FusionerConfig(
    image_dim=384, text_dim=384, width=128, layers=2, heads=4, decoder_widths=(64, 32), decoder_norm="layer",
    similarity="posterior", aligned_dim=1000, logit_bias=True,
)  # fmt: skip
SHARD = 40  # views of the default size in 64 MiB


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


def simulate(folder: Path, space: Space, views: int) -> list[tuple[str, int]]:
    keys = [(hashlib.sha256(str(i).encode()).hexdigest(), 0) for i in range(views)]
    for number, start in enumerate(range(0, views, SHARD)):
        entries = tuple(Entry(digest, view, digest, "/x.jpg") for digest, view in keys[start : start + SHARD])
        manifest = Manifest(space, entries)
        (folder / f"{number:016x}.json").write_text(manifest.text)
        file = folder / f"{number:016x}.safetensors"
        file.write_bytes(manifest.header)
        os.truncate(file, manifest.head_bytes + manifest.data_bytes)
    return keys


def cache(sizes: list[int], rounds: int) -> None:
    print("\n| views | open the cache, s | assemble a batch of 8, ms |\n|---|---|---|")
    space = Space("simulated", "0", 336, 1384, (24, 24))
    for views in sizes:
        with tempfile.TemporaryDirectory() as name:
            keys = simulate(Path(name), space, views)
            start = time.process_time()
            shelf = Shelf(Path(name), space)
            opened = time.process_time() - start
            picked = torch.randint(views, (8 * (rounds + 2) * 4,)).tolist()
            batches = iter([[keys[i] for i in picked[j : j + 8]] for j in range(0, len(picked), 8)])
            took = cpu(lambda shelf=shelf, batches=batches: shelf.read(next(batches)), 4 * rounds)
        print(f"| {views:,} | {opened:.2f} | {1000 * took:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--views", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    torch.set_num_threads(1)
    network(given.rounds)
    cache(given.views, given.rounds)


if __name__ == "__main__":
    main()
