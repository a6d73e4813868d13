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
    """A convolution that takes its time."""

    name, dim, stride = "small", 16, 4
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = torch.nn.Parameter(torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
        self.freeze()

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 16 gh gw"]:
        """Colours of 4 x 4 patches, projected."""
        time.sleep(self.seconds)
        return F.normalize(torch.cat([F.conv2d(one[None] - 0.5, self.weight, stride=4) for one in images]), dim=1)

    def fingerprint(self) -> str:
        """Sha256 of the weights."""
        return hashlib.sha256(self.weight.numpy().tobytes()).hexdigest()


def draw(root: Path, images: int, seed: int) -> SegmentationData:
    """A folder of noise pictures with masks."""
    rng = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for i in range(images):
        height, width = rng.integers(20, 60, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:03}.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(root / "masks" / f"{i:03}.png")
    (root / "classes.txt").write_text("background\nbright\n")
    return open_folder(root)


# Builders are forked from a server that has imported all they need and computed nothing: from a process that has used
# torch's threads they would inherit a broken pool.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "fusioner.features.build"])


def build(root: Path, cache: Path, seconds: float, seed: int, log: Path) -> None:
    """Build the cache in one process, its images in random order."""
    torch.set_num_threads(1)
    data = open_folder(root)
    random.Random(seed).shuffle(data.items)
    cache_features(cache, data, SmallEncoder(seconds), SIDE, views=VIEWS, batch_size=2, say=log.write_text)


class Trial:
    """A cache under attack."""

    def __init__(self, place: Path, images: int, seconds: float, seed: int) -> None:
        self.random = random.Random(seed)
        self.place, self.caches, self.seconds = place, 0, seconds
        self.data, self.encoder = draw(place / "set", images, seed), SmallEncoder(seconds)
        live = LiveSource(self.data, SmallEncoder(0), SIDE)
        wanted = [(item, view) for item in self.data.items for view in range(VIEWS)]
        digests = cache_features(place / "digests", self.data, SmallEncoder(0), SIDE).digests
        tokens = live.batch(wanted)[0].half()
        self.truth = {(digests[item.id], view): one for (item, view), one in zip(wanted, tokens, strict=True)}
        self.fresh()

    def fresh(self) -> None:
        """Begin a new cache."""
        self.caches += 1
        self.cache, self.before = self.place / f"cache{self.caches}", set()

    def start(self, log: str = "log") -> BaseProcess:
        """A builder at work, its images in an order of its own."""
        seed, log_file = self.random.randrange(2**32), self.place / log
        builder = FORKS.Process(target=build, args=(self.place / "set", self.cache, self.seconds, seed, log_file))
        builder.start()
        return builder

    def look(self) -> int:
        """Check every entry and return their number; AssertionError says what is wrong."""
        cache = FeatureCache(self.cache, self.encoder, SIDE)
        there = {key for key in self.truth if cache.contains(*key)}
        assert len(entry_files(cache.folder)) == len(there), "an entry nobody asked for"
        assert self.before <= there, f"{len(self.before - there)} entries were lost"
        for key in there:
            tokens = cache.get(*key)
            assert tokens is not None, "an entry is damaged"
            assert torch.equal(tokens, self.truth[key]), "an entry is not the encoder's"
        if self.cache.is_dir():
            assert not (found := verify(self.cache)), f"damage: {found[0]}"
        self.before = there
        return len(there)

    def race(self, builders: int) -> list[int]:
        """Let several builders begin together and end; how many views each encoded."""
        logs = [f"log{i}" for i in range(builders)]
        join([self.start(log) for log in logs])
        self.whole()
        said = [(self.place / log).read_text() for log in logs]
        return [int(found[1]) if (found := re.match(r"encoded (\d+)", line)) else 0 for line in said]

    def attack(self, builders: int, longest: float) -> int:
        """Start builders, kill each at a moment of its own; how many were still at work then."""
        started = [self.start() for _ in range(builders)]
        for builder in started:
            time.sleep(self.random.uniform(0, longest / builders))
            builder.kill()
            builder.join()
        return sum(builder.exitcode == -signal.SIGKILL for builder in started)

    def finish(self) -> None:
        """Let one builder end its work, and see that it did."""
        join([self.start()])
        self.whole()

    def whole(self) -> None:
        """See that every entry is there and nothing else; temporary files are removed once they are old."""
        assert self.look() == len(self.truth), "entries are missing after a whole build"
        for path in self.cache.rglob(".part-*"):
            os.utime(path, (0, 0))
        assert prune(self.cache).views == 0, "a whole cache has nothing to drop"
        left = [path.name for path in self.cache.rglob("*") if path.name.startswith(".part-")]
        assert not left, f"left behind: {left}"


def join(builders: Sequence[BaseProcess]) -> None:
    """Wait for builders; AssertionError unless all end well."""
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0] * len(builders), "a builder failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--builders", type=int, default=2, help="processes building at once")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=0.01, help="that the encoder sleeps for each batch")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trial = Trial(Path(place), given.images, given.seconds, given.seed)
        begin = time.monotonic()
        shares = trial.race(given.builders)
        longest = time.monotonic() - begin  # so long a build takes here and now
        trial.fresh()
        killed, counts = 0, []
        while killed < given.kills:
            killed += trial.attack(given.builders, longest)
            counts.append(trial.look())
            if counts[-1] == len(trial.truth):
                trial.finish()
                trial.fresh()
        trial.finish()
        print(f"{given.builders} builders left alone encode {' + '.join(map(str, shares))} views in {longest:.1f} s")
        partial = sum(0 < count < len(trial.truth) for count in counts)
        print(f"{killed} builders killed, {trial.caches} caches of {len(trial.truth)} views finished")
        print(f"{len(counts)} looks, {partial} of them at a cache half built: nothing stale, broken or lost")


if __name__ == "__main__":
    main()
