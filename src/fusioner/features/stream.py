"""The views of a cache, shard after shard, without a list of them: for caches larger than any list should be.

Memory holds 24 bytes a shard and the few shards being read; ten million views are no more than ten thousand.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.features.quantise import Quantised, restore
from fusioner.features.sampler import MIX, ShardSampler
from fusioner.features.shard import Entry, Rows, Stored, read_manifest, shard_names


class View(NamedTuple):
    """A stored view: what it is of, and its tokens, mapped from the file."""

    entry: Entry
    stored: Stored

    @property
    def tokens(self) -> Float[Tensor, "d gh gw"]:
        """In float32; the one copy that is made."""
        return restore(self.stored) if isinstance(self.stored, Quantised) else self.stored.float()


class ViewStream:
    """Every view of a space's folder once an epoch, each shard read from its start to its end.

    Args:
        folder: CACHE/<key of a space>, for example `Shelf.folder`.
        seed, rank, world: see `ShardSampler`.

    Raises:
        FusionerError: there are no shards, or a shard is damaged (while it is read).
    """

    def __init__(self, folder: Path, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.folder = folder
        self._names = np.array(shard_names(folder), "S16")
        if not len(self._names):
            raise FusionerError(f"{folder} holds no features: build them with fusioner features build")
        manifest = next((one for name in self._names if (one := read_manifest(folder, name.decode()))), None)
        if manifest is None:
            raise FusionerError(f"{folder} holds no shard that can be read: run fusioner features verify --repair")
        size = manifest.space.entry_bytes
        counts = np.fromiter((self._count(name.decode(), size) for name in self._names), np.int64, len(self._names))
        self._sampler = ShardSampler(counts, seed, rank, world)

    def __len__(self) -> int:
        """Views of all processes together."""
        return int(self._sampler.counts.sum())

    def epoch(self, number: int = 0) -> Iterator[View]:
        """The views of this process, in the order of `ShardSampler.epoch`."""
        opened = lru_cache(MIX)(self._open)
        for shards, rows in self._sampler.epoch(number):
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
                content = opened(shard)
                yield View(content.manifest.entries[row], content[row])

    def _open(self, shard: int) -> Rows:
        name = self._names[shard].decode()
        manifest = read_manifest(self.folder, name)
        if manifest is None or len(manifest.entries) != self._sampler.counts[shard]:
            raise FusionerError(f"shard {name} of {self.folder} is damaged: run fusioner features verify --repair")
        return Rows(self.folder / f"{name}.safetensors", manifest)

    def _count(self, name: str, entry_bytes: int) -> int:
        """Rows of a shard, by its size: reading every manifest would take as long as reading the views."""
        path = self.folder / f"{name}.safetensors"
        with path.open("rb") as file:
            head = 8 + int.from_bytes(file.read(8), "little")
        return (path.stat().st_size - head) // entry_bytes
