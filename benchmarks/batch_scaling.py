"""How `fusioner batch` scales: the arithmetic of docs/batch.md, and a simulation that has to agree with it.

    python benchmarks/batch_scaling.py                 # the table up to a billion images, each row simulated
    python benchmarks/batch_scaling.py --core-seconds 0.35 --image-bytes 60e3

The simulation plays every shard: workers that take them, compute, die at random and are replaced, a file server that
answers opens and reads one after another. It knows nothing of the formulas. Exit code 1 where they differ by over 5 %.
"""

import argparse
import heapq
import math
import sys
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Setting:
    """A run on paper.

    Attributes:
        images, workers, shard: how many, and images a shard.
        seconds: a worker computes on an image; image_bytes, row_bytes: read and written an image.
        mean_life: seconds until a worker is lost (preempted, crashed); restart: seconds until it works again.
        bandwidth: bytes a second, opens: file operations a second, that the file system gives to all together.
        files: images are files of their own (else Parquet or tar).
    """

    images: float
    workers: int
    shard: int = 256
    seconds: float = 0.8
    image_bytes: float = 100e3
    row_bytes: float = 1.5e3
    mean_life: float = 24 * 3600
    restart: float = 60
    bandwidth: float = 10e9
    opens: float = 20_000
    files: bool = False

    @property
    def shards(self) -> int:
        return math.ceil(self.images / self.shard)

    @property
    def compute(self) -> float:
        """Seconds a shard takes one worker that nothing happens to."""
        return self.shard * self.seconds

    @property
    def served(self) -> float:
        """Seconds of the file system's time that one shard takes: the slower of reading and opening."""
        opened = 10 + (self.shard if self.files else 1)  # claim, note, result, rename; and the input
        return max(self.shard * (self.image_bytes + self.row_bytes) / self.bandwidth, opened / self.opens)


def on_paper(s: Setting) -> tuple[float, str]:
    """Seconds for the whole run, and what limits it.

    A shard is done when a worker outlives it. With lives of mean M, a shard of T seconds and a restart of R, this takes
    (M + R) (e^(T/M) - 1) on average. All workers together finish that often, or as often as the file system allows;
    and the last shards leave workers idle for about half a shard.
    """
    each = (s.mean_life + s.restart) * math.expm1(s.compute / s.mean_life)
    by_workers, by_files = s.shards * each / s.workers, s.shards * s.served
    return max(by_workers, by_files) + each / 2, "workers" if by_workers >= by_files else "file system"


def simulated(s: Setting, seed: int) -> float:
    """The same, played shard by shard."""
    rng = np.random.default_rng(seed)
    lives = iter(())
    server, left, end = 0.0, s.shards, 0.0
    # (time it can take a shard, time it dies)
    workers = [(0.0, life) for life in rng.exponential(s.mean_life, s.workers)]
    heapq.heapify(workers)
    while left:
        now, dies = heapq.heappop(workers)
        done = now + s.compute
        if dies < done:  # the shard is given out again: what was computed is lost
            server = max(server, now) + s.served * min(1.0, (dies - now) / s.compute)
            life = next(lives, None)
            if life is None:
                lives = iter(rng.exponential(s.mean_life, 100_000))
                life = next(lives)
            heapq.heappush(workers, (dies + s.restart, dies + s.restart + life))
            continue
        server = max(server, now) + s.served  # one after another
        done = max(done, server)
        left, end = left - 1, max(end, done)
        heapq.heappush(workers, (done, max(dies, done)))
    return end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core-seconds", type=float, default=0.8, help="of one image, see benchmarks/README.md")
    parser.add_argument("--image-bytes", type=float, default=100e3)
    parser.add_argument("--row-bytes", type=float, default=1.5e3)
    options = parser.parse_args()
    given = {"seconds": options.core_seconds, "image_bytes": options.image_bytes, "row_bytes": options.row_bytes}
    rows = [
        ("a laptop", Setting(1e5, 8, mean_life=30 * 86_400, **given)),
        ("a server", Setting(1e6, 64, **given)),
        ("a small cluster", Setting(1e7, 1_000, **given)),
        ("a large one", Setting(1e9, 10_000, **given)),
        ("the same, spot: lost every 2 hours", Setting(1e9, 10_000, mean_life=7200, **given)),
        ("spot, shards of 4,096", Setting(1e9, 10_000, 4096, mean_life=7200, **given)),
        ("100,000 workers", Setting(1e9, 100_000, **given)),
        ("100,000 workers, single files", Setting(1e9, 100_000, files=True, **given)),
    ]
    print("| | images | workers | shards | core-hours | input, TB | results, TB | on paper, h | simulated, h | limit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for seed, (name, s) in enumerate(rows):
        (paper, limit), played = on_paper(s), simulated(s, seed)
        worst = max(worst, abs(played / paper - 1))
        sizes = f"{s.images * s.image_bytes / 1e12:.3g} | {s.images * s.row_bytes / 1e12:.2g}"
        print(
            f"| {name} | {s.images:.0e} | {s.workers:,} | {s.shards:,} | {paper * s.workers / 3600:,.0f} | {sizes} "
            f"| {paper / 3600:.3g} | {played / 3600:.3g} | {limit} |",
            flush=True,
        )
    print(f"the simulation differs from the arithmetic by at most {worst:.1%}")
    return 1 if worst > 0.05 else 0


if __name__ == "__main__":
    sys.exit(main())
