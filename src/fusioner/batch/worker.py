"""Segment one shard into one Parquet file, in any engine.

read and decode (threads, a few ahead) ──▶ segment (here) ──▶ rows ──▶ one Parquet file, renamed into place
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusioner import __version__
from fusioner.batch.plan import CrashLog, Plan, Shard
from fusioner.batch.run import BatchJob, Event
from fusioner.batch.sources import Picture
from fusioner.batch.yolo import write_example
from fusioner.errors import FusionerError
from fusioner.formats import found_segments
from fusioner.image import read_image
from fusioner.io import atomic_write
from fusioner.labels import label_warnings
from fusioner.loading import load
from fusioner.prefetch import map_ahead
from fusioner.segmentation import Segmentation

_BOX = pa.list_(pa.int32(), 4)
_SEGMENT = pa.struct({"label": pa.string(), "area": pa.int64(), "score": pa.float32(), "box": _BOX, "rle": pa.string()})
SCHEMA = pa.schema(
    [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        ("container", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("segments", pa.list_(_SEGMENT)),
        ("mask", pa.string()),
        ("error", pa.string()),
        ("note", pa.string()),
    ]
)
"""index: place in the input; image: name; container: its Parquet file or archive; segments: the labels found (with the
option instances: regions), largest first, with pixels, mean probability, box (x y width height) and compressed run
lengths (COCO) of the mask; mask: path of the PNG, relative to OUT; error: why there is no result; note:
parts of the picture that were not read or were converted."""


class Worker:
    """A loaded model that segments shards, one after another."""

    def __init__(self, job: BatchJob) -> None:
        self.job, self.plan = job, Plan(job.out)
        self.locks = self.plan.locks()
        self.segmenter = load(device=job.device, threads=job.threads, **job.model)
        self.options = self.segmenter.resolve(job.options)
        self.segmenter.embed(job.labels)

    def run(self, number: int, on_progress: Callable[[Event], object] = lambda event: None) -> Event:
        """Segment a shard, unless it is done or another process works on it.

        `on_progress` is called after every batch of images; exceptions end the work.
        """
        rows: list[dict[str, Any]] = []
        if self.locks.acquire(number):
            try:
                if not self.plan.result(number).exists():
                    rows = self._segment_shard(self.plan[number], on_progress)
            finally:
                self.locks.release(number)
        return Event(number, len(rows), _count(rows, "error"), _count(rows, "note"), peak_memory(), finished=True)

    def _segment_shard(self, shard: Shard, on_progress: Callable[[Event], object]) -> list[dict[str, Any]]:
        with CrashLog(self.job.out, shard.number, self.job.run) as crash_log:
            batch_size = 1 if crash_log.one_by_one else self.job.batch_size
            ahead = 0 if crash_log.one_by_one else 2 * batch_size
            pictures = enumerate(self.plan.pictures(shard, self.job.source), shard.first)
            rows: list[dict[str, Any]] = []
            with map_ahead(lambda item: _decode(*item, crash_log), pictures, ahead) as images:
                for batch in _batches(images, batch_size):
                    rows += self._rows(batch, shard)
                    on_progress(Event(shard.number, len(rows), _count(rows, "error")))
            about = {"version": __version__, "labels": self.job.labels, "notes": label_warnings(self.job.labels)}
            metadata = about | self.plan.settings
            table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"fusioner": json.dumps(metadata)}))
            with atomic_write(self.plan.result(shard.number)) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            return rows

    def _rows(self, batch: "list[DecodedImage]", shard: Shard) -> Iterator[dict[str, Any]]:
        results = iter(self._segment([image.content for image in batch if isinstance(image.content, np.ndarray)]))
        for number, picture, content, note in batch:
            row = {"index": number, "image": _valid_utf8(picture.name), "container": shard.container or None}
            row["note"] = _valid_utf8(note) or None
            result = content if isinstance(content, Exception) else next(results)
            if isinstance(result, Exception):
                message = str(result) if isinstance(result, FusionerError) else f"{type(result).__name__}: {result}"
                yield row | {"error": _valid_utf8(message)}
                continue
            row |= {"width": result.width, "height": result.height}
            row["segments"] = [
                {
                    "label": segment.label,
                    "area": segment.pixels,
                    "score": segment.score,
                    "box": segment.box,
                    "rle": segment.rle["counts"],
                }
                for segment in found_segments(result)
            ]
            if "mask" in self.job.formats:
                row["mask"] = f"masks/{number // 10_000:06}/{number:012}.png"
                with atomic_write(self.job.out / row["mask"]) as temporary:
                    temporary.write_bytes(result.to_bytes("mask"))
            if "yolo" in self.job.formats:
                write_example(self.job.out, number, picture, result)
            yield row

    def _segment(self, images: list[np.ndarray]) -> list[Segmentation | Exception]:
        """Return a result or error per image; if a batch fails, its images are segmented one by one."""
        labels, options, segmenter = self.job.labels, self.options, self.segmenter
        try:
            if len(images) == 1 or options.mode != "whole":
                return [segmenter(image, labels, options) for image in images]
            encoded = segmenter.encode_batch(images, options) if images else []
            logits = ((image, segmenter.low_res_logits(image, labels)) for image in encoded)
            return [segmenter.decide(image, labels, plane, options) for image, plane in logits]
        except Exception as error:  # any error of one image; the others of the input must still be segmented
            return [error] if len(images) == 1 else [self._segment([image])[0] for image in images]


class DecodedImage(NamedTuple):
    """An image by its number in the input: its file, upright RGB or the error of reading it, and the reader's notes."""

    number: int
    picture: Picture
    content: np.ndarray | Exception
    note: str = ""


def _decode(number: int, picture: Picture, crash_log: CrashLog) -> DecodedImage:
    if number in crash_log.poison_images:
        reason = "the process died twice while working on this image: it crashes a decoder or fills the memory"
        return DecodedImage(number, picture, FusionerError(reason))
    crash_log.begin(number)
    notes: list[str] = []
    try:
        return DecodedImage(number, picture, read_picture(picture, notes.append), "; ".join(notes))
    except Exception as error:  # a decoder may raise anything
        return DecodedImage(number, picture, error)


def read_picture(picture: Picture, on_note: Callable[[str], None]) -> np.ndarray:
    """Return the upright RGB pixels of a picture; FusionerError when it cannot be read; see `read_image`."""
    if isinstance(picture.content, FusionerError):
        raise picture.content
    return read_image(picture.content, picture.name if isinstance(picture.content, bytes) else None, on_note)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _valid_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")  # file names may hold any bytes


def _count(rows: list[dict[str, Any]], column: str) -> int:
    return sum(bool(row.get(column)) for row in rows)


def peak_memory() -> int:
    """Return the peak memory of this process in bytes; 0 where the system does not report it (Windows)."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with the peak of the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes
