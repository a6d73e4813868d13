"""In which order to read shards: each from its first row to its last, several side by side so that their rows mix.

A disk or a network reads a file from its start to its end many times faster than it finds single rows in ten thousand
files. So shards are shuffled, not rows: a few of them are open at a time, and the next row is taken from one of these,
drawn at random. What is kept is a number a shard, never one a row.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64

MIX = 8
"""Shards read side by side: of 64 MiB each, half a gigabyte that the system keeps in memory."""


class ShardSampler:
    """Where to read next, epoch after epoch.

    Args:
        counts: rows of each shard.
        seed: of the order; every epoch has its own.
        rank, world: of several processes each takes whole shards of its own.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.counts, self.seed, self.rank, self.world = np.asarray(counts, np.int64), seed, rank, world

    def epoch(self, number: int) -> Iterator[tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]]:
        """Shards and rows, every row once: in portions of `MIX` shards, of each shard in the order of its rows."""
        rng = np.random.default_rng((self.seed, 1, number))
        shards = rng.permutation(len(self.counts))[self.rank :: self.world]
        for start in range(0, len(shards), MIX):
            some = shards[start : start + MIX]
            drawn = rng.permutation(np.repeat(np.arange(len(some)), self.counts[some]))
            rows = np.empty_like(drawn)
            rows[np.argsort(drawn, kind="stable")] = np.concatenate(
                [np.arange(count) for count in self.counts[some].tolist()]
            )
            yield some[drawn], rows
