"""Shards by processes of this machine: each loads the model once and is told one shard at a time through a pipe.

A process that dies is replaced and its shard given out again. Pipes belong to one process each, so that none can die
holding what another needs; and when this process dies, however it does, theirs break at the next image and they end.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from fusioner.batch.worker import Done, Job, Under, Worker
from fusioner.errors import FusionerError

_GIVE_UP = 6  # deaths in a row without a single image done


def run_local(job: Job, shards: Iterable[int], workers: int, devices: int = 0) -> Iterator[Done | Under]:
    """Do the shards -> `Done` of every one as it ends, and `Under` while it does not.

    Args:
        devices: GPUs to share the workers out to; 0: all use `job.device`.

    Raises:
        FusionerError: the model cannot be loaded, results cannot be written, or every new process dies at once.
    """
    left = iter(shards)
    some = [_Process(replace(job, device=f"cuda:{n % devices}") if devices else job) for n in range(workers)]
    try:
        for process in some:
            process.give(next(left, None))
        while busy := {process.pipe: process for process in some if process.shard is not None}:
            for pipe in wait(list(busy)):
                process = busy[pipe]  # pyright: ignore[reportArgumentType]
                told = process.hear()
                if told is None:
                    some[some.index(process)] = process.again()
                    continue
                if isinstance(told, Exception):
                    raise told
                yield told
                if isinstance(told, Done):
                    process.give(next(left, None))
    finally:
        for process in some:
            process.close()


class _Process:
    """A worker process and the shard it has."""

    def __init__(self, job: Job, barren: int = 0) -> None:
        """`barren`: how many before it died without an image done."""
        context = get_context("spawn")
        self.job, self.shard, self.barren = job, None, barren
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(job, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, shard: int | None) -> None:
        self.shard = shard
        with suppress(OSError):  # it died: `hear` tells
            self.pipe.send(shard)

    def hear(self) -> Any:
        """What it has to tell; None when it died."""
        try:
            told = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.barren = 0
        return told

    def again(self) -> "_Process":
        """A new process with the shard that this one died at; FusionerError when that has been tried often enough."""
        self.close()
        if self.barren >= _GIVE_UP:
            raise FusionerError(
                f"the worker processes die at once (exit code {self._process.exitcode}): is there enough memory for "
                "--workers of them?"
            )
        new = _Process(self.job, self.barren + 1)
        new.give(self.shard)
        return new

    def close(self) -> None:
        self.pipe.close()
        self._process.join()


def _work(job: Job, pipe: Connection) -> None:
    """What a worker process runs until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, and with it the pipe
    worker: Worker | None = None
    with suppress(EOFError, OSError):  # nobody listens any more
        while (shard := pipe.recv()) is not None:
            try:
                worker = worker or Worker(job)
                told = worker.do(shard, partial(_tell, pipe, shard))
            except OSError:
                raise
            except Exception as error:  # a bug is told there, not tried again
                told = error
            pipe.send(told)


def _tell(pipe: Connection, shard: int, images: int, errors: int) -> None:
    pipe.send(Under(shard, images, errors))
