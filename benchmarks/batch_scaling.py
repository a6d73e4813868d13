"""Compute how `fusioner batch` scales by the formulas of docs/batch.md, and compare them with a simulation.

    python benchmarks/batch_scaling.py                 # the table up to a billion images, each row simulated
    python benchmarks/batch_scaling.py --core-seconds 0.35 --image-bytes 60e3

The simulation processes every shard: workers claim shards, compute, crash at random and are replaced, and a file server
handles opens and reads one after another. It does not use the formulas. The exit code is 1 if they differ by over 5 %.
"""

import argparse
import heapq
import math
import sys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Run:
    """Size of a batch and properties of the machines.

    Attributes:
        images: number of images.
        workers: number of workers.
        shard: images per shard.
        seconds: compute time per image and worker.
        image_bytes: bytes read per image.
        row_bytes: bytes written per image.
        mean_lifetime: mean seconds until a worker is lost (preempted, crashed).
        restart: seconds until a lost worker is replaced.
        bandwidth: bytes per second of the file system.
        opens: file operations per second of the file system.
        files: whether each image is a separate file (otherwise Parquet or tar).
    """

    images: float
    workers: int
    shard: int = 256
    seconds: float = 0.8
    image_bytes: float = 100e3
    row_bytes: float = 1.5e3
    mean_lifetime: float = 24 * 3600
    restart: float = 60
    bandwidth: float = 10e9
    opens: float = 20_000
    files: bool = False

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard)

    @property
    def compute(self) -> float:
        """Return the seconds of a worker per shard without crashes."""
        return self.shard * self.seconds

    @property
    def file_seconds(self) -> float:
        """Return the seconds of the file system per shard: the slower of reading and opening."""
        operations = 10 + (self.shard if self.files else 1)  # claim, log, result, rename; and the input
        return max(self.shard * (self.image_bytes + self.row_bytes) / self.bandwidth, operations / self.opens)


def estimate(s: Run) -> tuple[float, str]:
    """Return the seconds of the whole run and the component that limits it.

    A shard is finished once a worker survives it: (M + R) (e^(T/M) - 1) seconds on average for a mean lifetime M, a
    shard of T seconds and a restart of R. The file system bounds the rate of all workers together, and the last shards
    leave workers idle for about half a shard.
    """
    shard_seconds = (s.mean_lifetime + s.restart) * math.expm1(s.compute / s.mean_lifetime)
    by_workers, by_files = s.shards * shard_seconds / s.workers, s.shards * s.file_seconds
    return max(by_workers, by_files) + shard_seconds / 2, "workers" if by_workers >= by_files else "file system"


def simulate(s: Run, seed: int) -> float:
    """Simulate the run shard by shard and return its seconds."""
    rng = np.random.default_rng(seed)
    lifetimes = iter(())
    server_free, remaining, end = 0.0, s.shards, 0.0
    # (time at which the worker is free, time of its crash)
    workers = [(0.0, lifetime) for lifetime in rng.exponential(s.mean_lifetime, s.workers)]
    heapq.heapify(workers)
    while remaining:
        now, crash = heapq.heappop(workers)
        done = now + s.compute
        if crash < done:  # the shard is computed again by another worker
            server_free = max(server_free, now) + s.file_seconds * min(1.0, (crash - now) / s.compute)
            lifetime = next(lifetimes, None)
            if lifetime is None:
                lifetimes = iter(rng.exponential(s.mean_lifetime, 100_000))
                lifetime = next(lifetimes)
            heapq.heappush(workers, (crash + s.restart, crash + s.restart + lifetime))
            continue
        server_free = max(server_free, now) + s.file_seconds  # one after another
        done = max(done, server_free)
        remaining, end = remaining - 1, max(end, done)
        heapq.heappush(workers, (done, max(crash, done)))
    return end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core-seconds", type=float, default=0.8, help="compute time per image")
    parser.add_argument("--image-bytes", type=float, default=100e3)
    parser.add_argument("--row-bytes", type=float, default=1.5e3)
    options = parser.parse_args()
    costs = {"seconds": options.core_seconds, "image_bytes": options.image_bytes, "row_bytes": options.row_bytes}
    rows = [
        ("a laptop", Run(1e5, 8, mean_lifetime=30 * 86_400, **costs)),
        ("a server", Run(1e6, 64, **costs)),
        ("a small cluster", Run(1e7, 1_000, **costs)),
        ("a large one", Run(1e9, 10_000, **costs)),
        ("the same, spot: lost every 2 hours", Run(1e9, 10_000, mean_lifetime=7200, **costs)),
        ("spot, shards of 4,096", Run(1e9, 10_000, 4096, mean_lifetime=7200, **costs)),
        ("100,000 workers", Run(1e9, 100_000, **costs)),
        ("100,000 workers, single files", Run(1e9, 100_000, files=True, **costs)),
    ]
    print("| | images | workers | shards | core-hours | input, TB | results, TB | computed, h | simulated, h | limit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for seed, (name, s) in enumerate(rows):
        (estimated, limit), simulated = estimate(s), simulate(s, seed)
        worst = max(worst, abs(simulated / estimated - 1))
        sizes = f"{s.images * s.image_bytes / 1e12:.3g} | {s.images * s.row_bytes / 1e12:.2g}"
        print(
            f"| {name} | {s.images:.0e} | {s.workers:,} | {s.shards:,} | {estimated * s.workers / 3600:,.0f} | {sizes} "
            f"| {estimated / 3600:.3g} | {simulated / 3600:.3g} | {limit} |",
            flush=True,
        )
    print(f"the simulation differs from the formulas by at most {worst:.1%}")
    return 1 if worst > 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
