"""Shards by Ray Data: one actor a GPU, or one every so many cores, on this machine or on a cluster.

Ray moves nothing but the numbers of shards there and a line about each back: pictures are read, and results written,
where the actor is, so OUT and the input are folders that all machines see under the same path. Ray starts a lost actor
and its shards anew; that no shard is done twice, whatever Ray retries, is seen to by the shards' files.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fusioner.batch.worker import Done, Job, Worker
from fusioner.errors import FusionerError


def start_ray(address: str | None) -> None:
    """Join the cluster at `address` (or RAY_ADDRESS), or start Ray on this machine.

    Raises:
        FusionerError: Ray is not installed, or there is no such cluster.
    """
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    try:
        import ray.data
    except ImportError as error:
        raise FusionerError("--engine ray needs Ray: pip install 'fusioner[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        here: dict[str, Any] = {} if address or "RAY_ADDRESS" in os.environ else {"include_dashboard": False}
        ray.init(address=address, ignore_reinit_error=True, logging_level=logging.ERROR, log_to_driver=False, **here)
    except Exception as error:  # it raises bare ones
        where = f"cannot join the Ray cluster at {address}" if address else "Ray does not start on this machine"
        raise FusionerError(f"{where}: {str(error).strip().splitlines()[0]}") from error


def cluster_workers(threads: int) -> tuple[int, bool]:
    """How many workers the cluster has room for, and whether each has a GPU."""
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    return (gpus, True) if gpus else (max(1, int(resources.get("CPU", 1)) // threads), False)


def run_ray(job: Job, shards: Sequence[int], workers: int, gpus: bool) -> Iterator[Done]:
    """Do the shards -> `Done` of every one, as it ends.

    Raises:
        FusionerError: the model cannot be loaded or results cannot be written.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": job.threads}
    # A block is what Ray hands out and does again: one shard each.
    numbers = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
    done = numbers.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=2),
        fn_constructor_kwargs={"job": job},
        **resources,
    )
    try:
        for row in done.iter_rows():
            yield Done(**{name: row[name] for name in Done.__dataclass_fields__})
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, FusionerError):
            cause = cause.__cause__ or getattr(cause, "cause", None)
        raise (cause or FusionerError(f"Ray gave up: {str(error).strip().splitlines()[-1]}")) from error


class _Actor:
    """A worker as Ray Data calls it: a batch of shard numbers in, a row about each out."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows = [asdict(self._worker.do(int(number))) for number in batch["shard"]]
        return {name: [row[name] for row in rows] for name in rows[0]}
