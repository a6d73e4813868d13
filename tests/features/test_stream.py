"""Reading a cache shard by shard: every view once an epoch, each file from its start to its end, no list of all."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusioner.errors import FusionerError
from fusioner.features.fill import fill
from fusioner.features.sampler import MIX, ShardSampler
from fusioner.features.shard import Entry, Manifest, row_digest, write_shard
from fusioner.features.space import Space
from fusioner.features.stream import ViewStream


@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 4))
def test_every_row_once_and_each_shard_from_its_start(counts: list[int], world: int) -> None:
    epochs = []
    for number in (0, 1):
        read: list[tuple[int, int]] = []
        for rank in range(world):
            mine = [
                (shard, row)
                for shards, rows in ShardSampler(counts, 5, rank, world).epoch(number)
                for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)
            ]
            for shard in {shard for shard, _ in mine}:
                assert [row for one, row in mine if one == shard] == list(range(counts[shard]))
            opened = [mine.index((shard, 0)) for shard, _ in dict.fromkeys(mine) if _ == 0]
            assert opened == sorted(opened)
            read += mine
        assert sorted(read) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
        epochs.append(read)
    if sum(counts) > 50 and len(counts) > 3:
        assert epochs[0] != epochs[1]


def test_shards_are_mixed_but_no_more_than_a_few_at_a_time() -> None:
    portions = [shards for shards, _ in ShardSampler([40] * 20, 0).epoch(0)]
    assert [len(set(shards.tolist())) for shards in portions] == [MIX, MIX, 20 - 2 * MIX]
    neighbours = np.mean([np.mean(shards[1:] != shards[:-1]) for shards in portions])
    assert neighbours > 0.6


def test_the_stream_gives_what_the_shelf_gives(data, encoder, tmp_path: Path) -> None:
    source = fill(tmp_path / "cache", data, encoder, 32, views=3)
    stream = ViewStream(source.shelf.folder)
    views = list(stream.epoch(0))
    assert len(views) == len(stream) == 18
    assert {(one.entry.digest, one.entry.view) for one in views} == set(source.shelf._index)
    for one in views:
        assert torch.equal(one.tokens, source.shelf.read([(one.entry.digest, one.entry.view)])[0])
    assert {Path(one.entry.image).parent.name for one in views} == {"images"}


def many(folder: Path, files: int, rows: int, copies: int) -> Path:
    """A space's folder of files x rows x copies views: copies are further names of the same files, so they are real."""
    space = Space("none", "0" * 64, 14, 16, (1, 1))
    place = folder / space.key
    for number in range(files):
        tokens = list(torch.full((rows, 16, 1, 1), float(number), dtype=torch.float16))
        digests = [f"{number:032x}{row:032x}" for row in range(rows)]
        entries = tuple(
            Entry(digest, 0, row_digest(digest, 0, one), "/images/x.jpg")
            for digest, one in zip(digests, tokens, strict=True)
        )
        name = write_shard(place, Manifest(space, entries), tokens)
        for copy in range(1, copies):
            for suffix in (".json", ".safetensors"):
                os.link(place / f"{name}{suffix}", place / f"{number:06x}{copy:010x}{suffix}")
    return place


def test_memory_grows_with_shards_not_with_views(tmp_path: Path) -> None:
    """A hundred thousand views in 20 shards; a list of them would take ten times what is allowed here."""
    place = many(tmp_path, 2, 5_000, 10)
    next(iter(ViewStream(place).epoch()))  # what is imported and cached once
    tracemalloc.start()
    stream = ViewStream(place)
    kept = tracemalloc.get_traced_memory()[0]
    total = sum(1 for _ in stream.epoch(0))
    tracemalloc.stop()
    assert total == len(stream) == 100_000
    assert kept < 50_000


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match="holds no features"):
        ViewStream(tmp_path)
    place = many(tmp_path, 2, 3, 1)
    name = next(place.glob("*.json"))
    content = json.loads(name.read_text())
    assert len(content["entries"]) == 3
    whole = name.with_suffix(".safetensors")
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(FusionerError, match="is damaged"):
        list(ViewStream(place).epoch())
