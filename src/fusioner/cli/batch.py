"""`fusioner batch`: segment thousands to billions of pictures, each exactly once."""

import secrets
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from fusioner.batch.plan import make_plan
from fusioner.batch.run import BatchJob, RunStats, run_shards
from fusioner.batch.sources import open_source
from fusioner.batch.yolo import write_data_yaml
from fusioner.cli.options import (
    COMPUTE,
    Device,
    FastInferenceFlags,
    Labels,
    ModelFlags,
    Positive,
    print_error,
    print_notes,
    read_label_flags,
)
from fusioner.encoders.training_free import BACKGROUND_NAMES
from fusioner.errors import FusionerError
from fusioner.formats import split_formats
from fusioner.image import left_out_error
from fusioner.labels import label_warnings
from fusioner.model.checkpoint import model_digest
from fusioner.progress import format_duration, progress
from fusioner.weights import DEFAULT_MODEL, weights_file


def batch(
    input: str,
    /,
    *,
    labels: Labels,
    out: Path,
    format: str | None = None,
    column: str | None = None,
    options: FastInferenceFlags = FastInferenceFlags(),
    model: ModelFlags = ModelFlags(),
    device: Device = "auto",
    engine: Annotated[Literal["local", "ray"], Parameter(group=COMPUTE)] = "local",
    address: Annotated[str | None, Parameter(group=COMPUTE)] = None,
    workers: Annotated[Positive | None, Parameter(group=COMPUTE)] = None,
    threads: Annotated[Positive, Parameter(group=COMPUTE)] = 1,
    batch_size: Annotated[Positive | None, Parameter(group=COMPUTE)] = None,
    shard_size: Annotated[Positive | None, Parameter(group=COMPUTE)] = None,
    hourly_price: Annotated[float | None, Parameter(group=COMPUTE)] = None,
) -> int:
    """Segment many pictures into Parquet files; a repeated command continues an interrupted one.

    The input is cut into shards, and the results of each are one file in OUT/shards, complete or absent. After Ctrl-C,
    kill -9 or a power cut repeat the command: it does what is missing. Several commands may work on one OUT. A picture
    that cannot be read becomes a row with its error, and the exit code is then 2.

        fusioner batch photos/ --labels "cat, sofa" --out results
        fusioner batch "scans/**/*.jpg" --labels labels.txt --out results --format mask --workers 8
        fusioner batch photos/ --labels "cat, sofa" --out cats --format yolo
        fusioner batch train-000.parquet --column image --labels labels.txt --out results
        fusioner batch shards/ --labels labels.txt --out results --engine ray --address auto

    Args:
        input: A folder of pictures (with its subfolders), of .parquet or of .tar files (WebDataset); a glob of such
            files; one of them; or a text file with the path of a picture on each line, relative to that file.
        out: Folder of the results, see docs/batch.md.
        format: Also write files, separated by commas: mask (an indexed PNG per image), yolo (a data set that
            Ultralytics trains on: copies of the images, polygons, data.yaml). Default: tables only.
        column: Column of the pictures in Parquet files: bytes, or paths relative to the file. Default: the first called
            image, bytes, jpg, path or similar.
        engine: local: processes of this machine; ray: Ray Data, on this machine or a cluster.
        address: Ray cluster to join (auto: the one of this machine). Default: start Ray on this machine.
        workers: Number of workers, each with its own model. Default: one per GPU, else one per --threads cores.
        threads: CPU threads per worker.
        batch_size: Pictures encoded at once. Default: 16 on a GPU, 1 on a CPU, where more is not faster.
        shard_size: Maximum number of pictures per shard: what an interruption costs each worker. Default: 256.
        hourly_price: Price of a worker per hour, in any currency: reports the cost of 1,000 images. Default: no report.
    """
    label_list = read_label_flags(labels)
    formats = tuple(sorted(split_formats(format))) if format else ()
    if unknown := set(formats) - {"mask", "yolo"}:
        raise FusionerError(f"--format {', '.join(sorted(unknown))}: a batch writes mask and yolo besides its tables")
    if "mask" in formats and options.overlap:
        raise FusionerError("--format mask holds one label per pixel: omit it with --overlap")
    if batch_size and options.mode in ("multicrop", "slide"):
        raise FusionerError(f"--batch-size applies to mode whole, not to mode {options.mode}: omit it")
    import pyarrow  # noqa: F401 (fail before the model is hashed)

    print_notes(label_warnings(label_list))
    job = BatchJob(
        out=out.absolute(),
        source=open_source(input, column),
        run=secrets.token_hex(8),
        labels=tuple(label_list),
        options=options,
        model=model.arguments() | {"model": model.model and model.model.absolute()},
        formats=formats,
        threads=threads,
    )
    if engine == "ray":
        from fusioner.batch.ray_engine import start_ray

        count, run = start_ray(job, workers, device, batch_size, address)
    else:
        from fusioner.batch.multiprocessing_engine import local_engine

        if address:
            raise FusionerError("--address is that of a Ray cluster: add --engine ray")
        count, run = local_engine(job, workers, device, batch_size)
    left_out = Counter[str]()
    plan = make_plan(job.source, job.out, shard_size, _settings(job), lambda kind: left_out.update([kind]))
    if left_out:
        print_error(left_out_error(input, left_out))
    with progress(window=600.0) as bar:
        task = bar.task("segmenting", plan.images)
        show = lambda stats: task(stats.done, note=_note(stats, count, hourly_price))  # noqa: E731
        stats = run_shards(plan, run, show, max_shards=max(10_000, 50 * count))
    if "yolo" in job.formats:
        write_data_yaml(job.out, job.labels)
    print(_summary(stats, out, count, hourly_price))
    return 2 if stats.errors or left_out else 0


def _settings(job: BatchJob) -> dict[str, Any]:
    """Return the settings that determine the results, for the plan."""
    arguments = job.model
    if arguments["image_encoder"]:
        listed = arguments["background"]
        model: dict[str, Any] = {name.replace("_", " "): arguments[name] for name in ("image_encoder", "text_encoder")}
        model["background names"] = list(BACKGROUND_NAMES if listed is None else listed)
    else:
        model = {"model": model_digest(arguments["model"] or weights_file(DEFAULT_MODEL))}
    return {
        "labels": list(job.labels),
        **model,
        **job.options.to_dict(),
        "templates": arguments["templates"] and list(arguments["templates"]),
        "formats": list(job.formats),
        "column": job.source.column,
    }


def _note(stats: RunStats, workers: int, price: float | None) -> str:
    errors = stats.errors + sum(part.errors for part in stats.unfinished.values())
    cost = f"{price * _hours(stats, workers):.3g} per 1,000" if price and stats.done_here else ""
    return "  ".join(part for part in (f"{errors} errors" if errors else "", cost) if part)


def _summary(stats: RunStats, out: Path, workers: int, price: float | None) -> str:
    total = f"{stats.total:,} image{' is' if stats.total == 1 else 's are'} in {out}"
    if not stats.images:
        return f"{total}: nothing was left to do"
    speed, hours = stats.images / stats.seconds, _hours(stats, workers)
    parts = [
        total,
        f"{stats.images:,} of them done now in {format_duration(stats.seconds)}, {speed:.2g} per second",
        f"{stats.errors:,} error{'s' * (stats.errors > 1)}" if stats.errors else "no errors",
        f"{stats.notes:,} images were read with a note (column note)" if stats.notes else "",
        f"1,000 images take {hours:.3g} worker-hours" + (f" and cost {hours * price:.3g}" if price else ""),
        f"at most {stats.memory / 1e9:.2f} GB per worker" if stats.memory else "",
    ]
    return "; ".join(part for part in parts if part)


def _hours(stats: RunStats, workers: int) -> float:
    """Return the worker-hours per 1,000 images."""
    return workers * stats.seconds / 3600 / stats.done_here * 1000
