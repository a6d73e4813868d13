"""A run from its start to its last shard, whichever engine does them."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fusioner.batch.plan import Plan
from fusioner.batch.worker import Done, Under
from fusioner.io import FileLocks

_POLL = 1.0  # seconds between looks at what another run is doing


class Engine(Protocol):
    """Does shards: yields `Done` as each ends, and perhaps `Under` before."""

    def __call__(self, shards: Sequence[int], /) -> Iterator[Done | Under]: ...


@dataclass
class Tally:
    """How far a run is.

    Attributes:
        total: images in all; before: done by earlier runs; elsewhere: by others meanwhile.
        images, errors: done by this run, in whole shards.
        memory: most that a worker has held, bytes.
        under: images and errors of shards that are not done yet.
    """

    total: int
    before: int
    elsewhere: int = 0
    images: int = 0
    errors: int = 0
    memory: int = 0
    under: dict[int, Under] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begun

    @property
    def done(self) -> int:
        """Images done, whoever did them."""
        return self.before + self.elsewhere + self.images + sum(one.images for one in self.under.values())

    def add(self, event: Done | Under) -> None:
        """Take in what an engine tells."""
        if isinstance(event, Under):
            self.under[event.shard] = event
            return
        self.under.pop(event.shard, None)
        self.images, self.errors = self.images + event.images, self.errors + event.errors
        self.memory = max(self.memory, event.memory)


def run_shards(plan: Plan, engine: Engine, report: Callable[[Tally], object], most: int = 1_000_000) -> Tally:
    """Do every shard that has no results yet; `report` hears of all that happens.

    Any number of runs may do this to one plan at once. `most`: shards given to the engine at a time.

    Raises:
        FusionerError: what the engine raises.
    """
    done = plan.done()
    tally = Tally(plan.images, plan.count(done))
    missing = np.flatnonzero(~done)
    while len(missing):
        for event in engine(missing[:most].tolist()):
            tally.add(event)
            report(tally)
        while True:
            done = plan.done()
            tally.elsewhere = plan.count(done) - tally.before - tally.images
            report(tally)
            lacking = np.flatnonzero(~done)
            missing = _free(plan, lacking)
            if len(missing) or not len(lacking):
                break
            time.sleep(_POLL)
    for left in (*plan.out.glob("shards/*/.part-*"), *plan.out.glob("masks/*/.part-*")):
        left.unlink(missing_ok=True)  # of processes that were killed
    shutil.rmtree(plan.out / ".attempts", ignore_errors=True)
    return tally


def _free(plan: Plan, shards: np.ndarray) -> np.ndarray:
    """Those that nobody is at."""
    with FileLocks(plan.out / ".locks") as locks:
        free = [locks.acquire(int(number)) for number in shards]
        return shards[np.array(free, bool)]
