"""Ten million views read once through `ViewStream`: how much memory, how many a second.

    python benchmarks/stream_views.py --views 1e7

The cache is real files of tiny tokens; most names are further links to the same few files, so that ten million views
take megabytes of disk. They are opened, checked and read like any others.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import torch

from fusioner.features.shard import Entry, Manifest, row_digest, write_shard
from fusioner.features.space import Space
from fusioner.features.stream import ViewStream

ROWS, FILES = 10_000, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=float, default=1e7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = fill(Path(folder), int(options.views) // ROWS)
        before, begun = peak(), time.monotonic()
        stream = ViewStream(place)
        opened, count = time.monotonic() - begun, 0
        print("| views read | seconds | peak memory above the start, MB |\n|---|---|---|")
        for count, _ in enumerate(stream.epoch(0), start=1):
            if count % (len(stream) // 5) == 0:
                print(f"| {count:,} | {time.monotonic() - begun:.0f} | {(peak() - before) / 1e6:.0f} |", flush=True)
        assert count == len(stream)
        print(f"{len(stream):,} views in {len(stream) // ROWS} files; opening took {opened:.1f} s")


def fill(folder: Path, shards: int) -> Path:
    space = Space("none", "0" * 64, 14, 16, (1, 1))
    place = folder / space.key
    for number in range(FILES):
        tokens = list(torch.randn(ROWS, 16, 1, 1).half())
        digests = [f"{number:032x}{row:032x}" for row in range(ROWS)]
        rows = zip(digests, tokens, strict=True)
        entries = tuple(Entry(digest, 0, row_digest(digest, 0, one), f"/images/{digest}.jpg") for digest, one in rows)
        name = write_shard(place, Manifest(space, entries), tokens)
        for copy in range(number + FILES, shards, FILES):
            for suffix in (".json", ".safetensors"):
                os.link(place / f"{name}{suffix}", place / f"{copy:016x}{suffix}")
    return place


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
