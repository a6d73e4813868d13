"""`fusioner batch`: thousands to billions of pictures, each done exactly once."""

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from fusioner.batch.run import Engine, Tally
    from fusioner.batch.worker import Job


def batch(
    input: str,
    /,
    *,
    labels: Path,
    out: Path,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    threads: int = 1,
    address: str | None = None,
    masks: bool = False,
    shard_size: int | None = None,
    column: str | None = None,
    model: Path | None = None,
    threshold: float | None = None,
    background: bool = True,
    resolution: Literal["fast", "native"] = "fast",
    scales: str = "1",
    refine: bool | None = None,
    templates: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    hourly_price: float | None = None,
) -> None:
    """Segment many pictures; writes Parquet files, and goes on where it was interrupted.

    The input is cut into shards, and each shard's results are one file in OUT/shards, there whole or not at all. After
    Ctrl-C, kill -9 or a power cut repeat the command: it does what is missing. Several commands may work on one OUT.
    A picture that cannot be read is a row with its error.

        fusioner batch photos/ --labels labels.txt --out results
        fusioner batch "scans/**/*.jpg" --labels labels.txt --out results --masks --workers 8
        fusioner batch train-000.parquet --column image --labels labels.txt --out results
        fusioner batch shards/ --labels labels.txt --out results --engine ray --address auto

    Parameters
    ----------
    input
        A folder of pictures (with the folders inside), of .parquet or of .tar files (WebDataset); a glob of such files;
        one of them; or a text file with the path of a picture on each line, relative to that file.
    labels
        File of what to find, one label a line (UTF-8).
    out
        Folder for the results, see docs/batch.md.
    engine
        local: processes of this machine; ray: Ray Data, on this machine or a cluster.
    workers
        Processes, each with its own model. Default: one a GPU, else one every --threads cores.
    threads
        Cores a worker computes with.
    address
        Of a Ray cluster (auto: the one this machine belongs to); without it Ray starts here.
    masks
        Write an indexed PNG an image, too.
    shard_size
        Pictures a shard, at most: what an interruption costs each worker. Default 256.
    column
        Of Parquet: the column with the pictures, as bytes or paths relative to the file.
    model
        Model file of `fusioner train`; without it the one inside the package.
    threshold
        Probability a pixel needs to take a label, 0 to 1; default: the model's own.
    background
        Off: every pixel takes its likeliest label.
    resolution
        fast: look once at the whole picture; native: slide windows over its own pixels.
    scales
        Sizes at which fast looks at a picture, as multiples of the training size, their answers averaged.
    refine
        Move the edges of masks to edges of the photograph (fast only); default: as the model was made for.
    templates
        File of prompt templates, one a line, each with {} for the label.
    device
        auto, cpu, cuda, cuda:N or mps.
    batch_size
        Pictures encoded at once; default 16 on a GPU, 1 on a CPU, where more does not help.
    hourly_price
        What a worker costs an hour, in any currency: tells the cost of 1,000 images.
    """
    _check_numbers(workers=workers, threads=threads, shard_size=shard_size, batch_size=batch_size)
    _need_pyarrow()
    from fusioner.batch.plan import make_plan
    from fusioner.batch.run import run_shards
    from fusioner.batch.sources import open_source
    from fusioner.batch.worker import Job
    from fusioner.cli.inputs import read_looks
    from fusioner.cli.progress import progress
    from fusioner.encoders.prompt_templates import read_templates
    from fusioner.labels import read_labels
    from fusioner.postprocess import check_threshold

    if threshold is not None:
        check_threshold(threshold)
    job = Job(
        out=out.absolute(),
        source=open_source(input, column),
        run=secrets.token_hex(8),
        labels=tuple(read_labels(labels)),
        model=model and model.absolute(),
        threshold=threshold,
        background=background,
        resolution=resolution,
        scales=read_looks(scales, refine, resolution),
        refine=refine,
        templates=read_templates(templates) if templates else None,
        masks=masks,
        threads=threads,
    )
    make = _local if engine == "local" else _ray
    count, do = make(job, workers, device, batch_size, address)
    plan = make_plan(job.source, job.out, shard_size, _asked(job))
    with progress(window=600.0) as work:
        meter = work.meter("segmenting", plan.images)
        report = lambda tally: meter(tally.done, note=_note(tally, count, hourly_price))  # noqa: E731
        tally = run_shards(plan, do, report, most=max(10_000, 50 * count) if engine == "ray" else 1_000_000)
    print(_told(tally, out, count, hourly_price))


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise FusionerError(f"--{name.replace('_', '-')} is 1 or more, not {number}")


def _need_pyarrow() -> None:
    try:
        import pyarrow as pyarrow
    except ImportError as error:
        raise FusionerError("fusioner batch needs pyarrow: pip install 'fusioner[batch]'") from error


def _asked(job: "Job") -> dict[str, Any]:
    """What decides the results, for the plan."""
    from fusioner.encoders.bundled import weights_file
    from fusioner.loading import DEFAULT_MODEL

    path = job.model or weights_file(DEFAULT_MODEL)
    try:
        with path.open("rb") as file:
            model = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FusionerError(f"cannot read the model {path}: {error.strerror or error}") from error
    looks: dict[str, Any] = {} if job.scales == (1.0,) else {"scales": list(job.scales)}  # plans of before have none
    looks |= {} if job.refine is None else {"refine": job.refine}
    return looks | {
        "labels": list(job.labels),
        "model": model,
        "threshold": job.threshold,
        "background": job.background,
        "resolution": job.resolution,
        "templates": job.templates and list(job.templates),
        "masks": job.masks,
        "column": job.source.column,
    }


def _local(
    job: "Job", workers: int | None, device: str, batch: int | None, address: str | None
) -> "tuple[int, Engine]":
    """How many workers, and what does shards with them."""
    import torch

    from fusioner.batch.local_engine import run_local
    from fusioner.batch.worker import cores
    from fusioner.device import pick_device

    if address:
        raise FusionerError("--address is a Ray cluster's: add --engine ray")
    chosen = pick_device(device)
    gpus = torch.cuda.device_count() if chosen.type == "cuda" and chosen.index is None else 0
    count = workers or gpus or (max(1, cores() // job.threads) if chosen.type == "cpu" else 1)
    job = replace(job, device=str(chosen), batch=batch or (1 if chosen.type == "cpu" else 16))
    return count, lambda shards: run_local(job, shards, min(count, len(shards)), gpus)


def _ray(job: "Job", workers: int | None, device: str, batch: int | None, address: str | None) -> "tuple[int, Engine]":
    from fusioner.batch.ray_engine import cluster_workers, run_ray, start_ray

    start_ray(address)
    room, gpus = cluster_workers(job.threads)
    gpus = gpus and device != "cpu"
    job = replace(job, device="cuda" if gpus else "cpu", batch=batch or (16 if gpus else 1))
    count = workers or room
    return count, lambda shards: run_ray(job, shards, count, gpus)


def _note(tally: "Tally", workers: int, price: float | None) -> str:
    errors = tally.errors + sum(one.errors for one in tally.under.values())
    own = tally.done - tally.before - tally.elsewhere
    cost = f"{price * workers * tally.seconds / 3600 / own * 1000:.3g} per 1,000" if price and own else ""
    return "  ".join(part for part in (f"{errors} errors" if errors else "", cost) if part)


def _told(tally: "Tally", out: Path, workers: int, price: float | None) -> str:
    from fusioner.training.progress import clock

    told = f"{tally.total:,} images are in {out}"
    if not tally.images:
        return f"{told}: nothing was left to do"
    hours = workers * tally.seconds / 3600 / tally.images * 1000
    told += (
        f"; {tally.images:,} of them done now in {clock(tally.seconds)}, {tally.images / tally.seconds:.2g} a second"
    )
    told += f"; {tally.errors:,} errors" if tally.errors else "; no errors"
    told += f"; 1,000 images take {hours:.3g} worker-hours"
    told += f" and cost {hours * price:.3g}" if price else ""
    return told + (f"; at most {tally.memory / 1e9:.2f} GB a worker" if tally.memory else "")
