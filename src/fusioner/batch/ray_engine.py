"""Run shards with Ray Data: one actor per GPU, or per `threads` cores, on this machine or a cluster.

Only shard numbers and one result row each pass through Ray: actors read pictures and write results themselves, so the
input and OUT must be folders that all machines see under the same path. Ray restarts lost actors and their shards;
the result files keep retried shards from being done twice.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fusioner.batch.run import BatchJob, Engine, Event
from fusioner.batch.worker import Worker
from fusioner.errors import FusionerError
from fusioner.loading import runs_on_torch


def start_ray(
    job: BatchJob, workers: int | None, device: str, batch_size: int | None, address: str | None
) -> tuple[int, Engine]:
    """Join the cluster at `address` (or RAY_ADDRESS), or start Ray here; return the number of workers and an engine."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    local: dict[str, Any] = {} if address or "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
    try:
        ray.init(address=address, ignore_reinit_error=True, logging_level=logging.ERROR, log_to_driver=False, **local)
    except Exception as error:  # Ray raises plain exceptions
        problem = f"cannot join the Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise FusionerError(f"{problem}: {str(error).strip().splitlines()[0]}") from error
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    capacity = gpus or max(1, int(resources.get("CPU", 1)) // job.threads)
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        raise FusionerError(f"--device {device} is not in the Ray cluster: omit it, or name cpu or cuda")
    on_gpu = bool(gpus) and device != "cpu" and (device == "cuda" or runs_on_torch(**job.model, device="cuda"))
    job = replace(job, device="cuda" if on_gpu else "cpu", batch_size=batch_size or (16 if on_gpu else 1))
    count = workers or capacity
    return count, lambda shards: _run(job, shards, count, on_gpu)


def _run(job: BatchJob, shards: Sequence[int], workers: int, gpus: bool) -> Iterator[Event]:
    """Segment the shards and yield the result of each as it ends."""
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": job.threads}
    # A block is Ray's unit of scheduling and retrying: one shard each.
    numbers = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
    results = numbers.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={"job": job},
        **resources,
    )
    try:
        for row in results.iter_rows():
            yield Event(**row)
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, FusionerError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        raise (cause or FusionerError(f"Ray gave up: {str(error).strip().splitlines()[-1]}")) from error


class _Actor:
    """A worker in Ray Data's interface: maps a batch of shard numbers to a row per shard."""

    def __init__(self, job: BatchJob) -> None:
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        events = [self._worker.run(int(number)) for number in batch["shard"]]
        return {name: [getattr(event, name) for event in events] for name in Event._fields}
