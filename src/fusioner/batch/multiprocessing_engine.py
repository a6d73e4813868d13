"""Run shards in processes of this machine: each loads the model once and receives one shard at a time through a pipe.

A process that dies is replaced and its shard sent again. Each process has its own pipe, so that none can die holding
what another needs; when the main process dies, the pipes break at the next image and the workers exit.
"""

import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from fusioner.batch.run import BatchJob, Engine, Event
from fusioner.batch.worker import Worker
from fusioner.cores import available_cores
from fusioner.errors import FusionerError
from fusioner.loading import runs_on_torch

MAX_FAILED_STARTS = 6  # consecutive deaths of a process before its first image


def local_engine(job: BatchJob, workers: int | None, device: str, batch_size: int | None) -> tuple[int, Engine]:
    """Return the number of workers, by default one per GPU or one per `job.threads` cores, and the engine."""
    chosen, gpus = "cpu", 0
    if device not in ("auto", "cpu") or (device == "auto" and runs_on_torch(**job.model) and find_spec("torch")):
        import torch

        from fusioner.device import pick_device

        found = pick_device(device)
        gpus = torch.cuda.device_count() if found.type == "cuda" and found.index is None else 0
        chosen = str(found)
    on_cpu = chosen == "cpu"
    count = workers or gpus or (max(1, available_cores() // job.threads) if on_cpu else 1)
    job = replace(job, device=chosen, batch_size=batch_size or (1 if on_cpu else 16))
    return count, lambda shards: _run(job, shards, min(count, len(shards)), gpus)


def _run(job: BatchJob, shards: Iterable[int], workers: int, gpus: int) -> Iterator[Event]:
    """Yield the events of workers that are distributed over `gpus`; 0: all use `job.device`."""
    queue = iter(shards)
    processes = [_Process(replace(job, device=f"cuda:{n % gpus}") if gpus else job) for n in range(workers)]
    try:
        for process in processes:
            process.send(next(queue, None))
        while busy := {process.pipe: process for process in processes if process.shard is not None}:
            for pipe in wait(list(busy)):
                process = busy[pipe]  # pyright: ignore[reportArgumentType]
                message = process.receive()
                if message is None:
                    process.restart()
                elif isinstance(message, Exception):
                    raise message
                else:
                    yield message
                    if message.finished:
                        process.send(next(queue, None))
    finally:
        for process in processes:
            process.close()


class _Process:
    """A worker process and its current shard."""

    def __init__(self, job: BatchJob) -> None:
        self.job, self.failed_starts = job, 0
        self.shard: int | None = None
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        self._process = context.Process(target=_run_worker, args=(self.job, worker_end), daemon=True)
        self._process.start()
        worker_end.close()

    def send(self, shard: int | None) -> None:
        self.shard = shard
        with suppress(OSError):  # it died, as `receive` reports
            self.pipe.send(shard)

    def receive(self) -> Any:
        """Return the next message, or None if the process died."""
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.failed_starts = 0
        return message

    def restart(self) -> None:
        """Replace the process and send its shard again; FusionerError after `MAX_FAILED_STARTS` attempts."""
        self.close()
        self.failed_starts += 1
        if self.failed_starts > MAX_FAILED_STARTS:
            raise FusionerError(
                f"the worker processes die at once (exit code {self._process.exitcode}): is there enough memory for "
                "--workers of them?"
            )
        self.start()
        self.send(self.shard)

    def close(self) -> None:
        self.pipe.close()
        self._process.join()


def _run_worker(job: BatchJob, pipe: Connection) -> None:
    """Run a worker process until its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, which closes the pipe
    worker: Worker | None = None
    with suppress(EOFError, OSError):  # the main process has ended
        while (shard := pipe.recv()) is not None:
            try:
                worker = worker or Worker(job)
                message = worker.run(shard, pipe.send)
            except OSError:
                raise
            except Exception as error:  # raised in the main process, not retried
                message = error
            pipe.send(message)
