"""Kill processes that build a feature cache, and check that no stale, broken or lost entry is ever served.

    python benchmarks/cache_kill9.py --kills 50 --builders 2

Builds a cache of random images with a small encoder in separate processes, ends them with SIGKILL at random moments,
and reads the whole cache after every kill: every entry must equal the encoder's output bit for bit, no entry may have
disappeared, and every checksum must match. At the end an undisturbed build must complete the cache.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fusioner.data.base import SegmentationData
from fusioner.data.folder import folder as open_folder
from fusioner.encoders.base import FrozenImageEncoder
from fusioner.features.build import cache_features
from fusioner.features.cache import FeatureCache, entry_files
from fusioner.features.dataset import LiveSource
from fusioner.features.maintenance import prune, verify

SIDE, VIEWS = 32, 3


class SmallEncoder(FrozenImageEncoder):
    """A convolution with an artificial delay per batch."""

    name, dim, stride = "small", 16, 4
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
        self.freeze()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 16 gh gw"]:
        """Project 4 x 4 patches to unit vectors."""
        time.sleep(self.seconds)
        return F.normalize(torch.cat([F.conv2d(image[None] - 0.5, self.weight, stride=4) for image in images]), dim=1)

    def fingerprint(self) -> str:
        """Return the sha256 of the weights."""
        return hashlib.sha256(self.weight.numpy().tobytes()).hexdigest()


def make_dataset(root: Path, images: int, seed: int) -> SegmentationData:
    """Write a folder of random images with masks, and open it."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(images):
        height, width = rng.integers(20, 60, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03}.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(root / "masks" / f"{i:03}.png")
    (root / "classes.txt").write_text("background\nbright\n")
    return open_folder(root)


# Builders are forked from a server that has imported their modules and computed nothing: a fork of a process that has
# used torch's threads inherits a broken thread pool.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", "fusioner.features.build"])


def build(root: Path, cache: Path, seconds: float, seed: int, log: Path) -> None:
    """Build the cache in one process, with the images in random order."""
    torch.set_num_threads(1)
    data = open_folder(root)
    random.Random(seed).shuffle(data.items)
    cache_features(cache, data, SmallEncoder(seconds), SIDE, views=VIEWS, batch_size=2, say=log.write_text)


class Trial:
    """A feature cache whose builders are killed, and its expected entries."""

    def __init__(self, folder: Path, images: int, seconds: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.caches, self.seconds = folder, 0, seconds
        self.data, self.encoder = make_dataset(folder / "set", images, seed), SmallEncoder(seconds)
        live = LiveSource(self.data, SmallEncoder(0), SIDE)
        views = [(item, view) for item in self.data.items for view in range(VIEWS)]
        digests = cache_features(folder / "digests", self.data, SmallEncoder(0), SIDE).digests
        tokens = live.batch(views)[0].half()
        self.expected = {(digests[item.id], view): grid for (item, view), grid in zip(views, tokens, strict=True)}
        self.start_cache()

    def start_cache(self) -> None:
        """Start a new, empty cache."""
        self.caches += 1
        self.cache, self.previous = self.folder / f"cache{self.caches}", set()

    def start_builder(self, log: str = "log") -> BaseProcess:
        """Start a builder that visits the images in random order."""
        seed, log_file = self.random.randrange(2**32), self.folder / log
        builder = CONTEXT.Process(target=build, args=(self.folder / "set", self.cache, self.seconds, seed, log_file))
        builder.start()
        return builder

    def check(self) -> int:
        """Check every entry and return their number; raise AssertionError for a wrong, lost or unexpected one."""
        cache = FeatureCache(self.cache, self.encoder, SIDE)
        present = {key for key in self.expected if cache.contains(*key)}
        assert len(entry_files(cache.folder)) == len(present), "an unexpected entry"
        assert self.previous <= present, f"{len(self.previous - present)} entries were lost"
        for key in present:
            tokens = cache.get(*key)
            assert tokens is not None, "an entry is damaged"
            assert torch.equal(tokens, self.expected[key]), "an entry differs from the encoder's output"
        if self.cache.is_dir():
            assert not (found := verify(self.cache)), f"damage: {found[0]}"
        self.previous = present
        return len(present)

    def build_together(self, builders: int) -> list[int]:
        """Run several builders at once to their end, and return the number of views that each encoded."""
        logs = [f"log{i}" for i in range(builders)]
        join([self.start_builder(log) for log in logs])
        self.check_complete()
        messages = [(self.folder / log).read_text() for log in logs]
        return [int(found[1]) if (found := re.match(r"encoded (\d+)", line)) else 0 for line in messages]

    def kill_builders(self, builders: int, build_seconds: float) -> int:
        """Start builders, kill each at a random moment, and return how many were still running then."""
        running = [self.start_builder() for _ in range(builders)]
        for builder in running:
            time.sleep(self.random.uniform(0, build_seconds / builders))
            builder.kill()
            builder.join()
        return sum(builder.exitcode == -signal.SIGKILL for builder in running)

    def finish(self) -> None:
        """Run one builder to its end, and check that the cache is complete."""
        join([self.start_builder()])
        self.check_complete()

    def check_complete(self) -> None:
        """Check that every entry is present and nothing else; old temporary files are removed."""
        assert self.check() == len(self.expected), "entries are missing after a complete build"
        for path in self.cache.rglob(".part-*"):
            os.utime(path, (0, 0))
        assert prune(self.cache).views == 0, "a complete cache was pruned"
        leftover = [path.name for path in self.cache.rglob("*") if path.name.startswith(".part-")]
        assert not leftover, f"left behind: {leftover}"


def join(builders: Sequence[BaseProcess]) -> None:
    """Wait for builders; raise AssertionError if one fails."""
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0] * len(builders), "a builder failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--builders", type=int, default=2, help="builders at the same time")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.01, help="delay of the encoder per batch")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), args.images, args.seconds, args.seed)
        start = time.monotonic()
        encoded = trial.build_together(args.builders)
        build_seconds = time.monotonic() - start
        trial.start_cache()
        killed, counts = 0, []
        while killed < args.kills:
            killed += trial.kill_builders(args.builders, build_seconds)
            counts.append(trial.check())
            if counts[-1] == len(trial.expected):
                trial.finish()
                trial.start_cache()
        trial.finish()
        print(
            f"{args.builders} builders left alone encode {' + '.join(map(str, encoded))} views in {build_seconds:.1f} s"
        )
        partial = sum(0 < count < len(trial.expected) for count in counts)
        print(f"{killed} builders killed, {trial.caches} caches of {len(trial.expected)} views finished")
        print(f"{len(counts)} checks, {partial} of them of a partial cache: nothing stale, broken or lost")


if __name__ == "__main__":
    main()
