"""The loop of `fusioner predict`: threads read ahead and write behind, the model segments in between."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from fusioner.cli.inputs import STDIN, VIDEO_OVERLAY, Job, is_video
from fusioner.cli.options import print_error, print_notes
from fusioner.errors import FusionerError
from fusioner.formats import FORMATS, segments
from fusioner.image import ImageSource, read_image
from fusioner.io import atomic_write, cannot_read, check_replaceable
from fusioner.labels import find_uncommon
from fusioner.options import InferenceOptions
from fusioner.prefetch import map_ahead, taken_ahead
from fusioner.progress import Task
from fusioner.segmentation import Segmentation
from fusioner.segmenter import Segmenter
from fusioner.video import Video, open_video, write_video
from fusioner.visualization import ContactSheet, add_legend, format_coverage, thumbnail

CSV_COLUMNS: tuple[str, ...] = (
    *("picture", "frame", "label", "found", "pixels", "coverage"),
    *("score", "peak", "outscored_by", "box", "error"),
)
MAX_NAMES = 8  # of labels found, and of labels not found, in the line of an input
CSV_MARK = ",".join(CSV_COLUMNS).encode()
Rows = list[dict[str, Any]]


@dataclass(eq=False)
class Item:
    """A picture, or frame number `frame` of a video, on its way through the loop."""

    job: Job
    image: ImageSource = b""
    frame: int | None = None
    time: float = 0.0
    result: Segmentation | None = None
    error: FusionerError | None = None
    skipped: bool = False
    message: str = ""
    notes: list[str] = field(default_factory=list)  # parts of the file that were not read
    rows: Rows = field(default_factory=list)
    thumbnail: Image.Image | None = None
    drawing: Image.Image | None = None  # a frame of the video of overlays

    @property
    def stem(self) -> str:
        """Stem of the result files."""
        return self.job.stem + ("" if self.frame is None else f"-{self.frame:06}")

    def title(self, path: str | Path) -> str:
        """Return the name of the input, with the number of a video's frame."""
        return str(path) + ("" if self.frame is None else f" frame {self.frame}")


@dataclass(eq=False)
class Run:
    """Segments all inputs, prints a line for each, and counts pictures, frames, skipped inputs and failures."""

    labels: Sequence[str]
    options: InferenceOptions
    formats: tuple[str, ...]
    frame_step: int = 10
    workers: int = 2  # threads that read, and as many that write
    skip_existing: bool = False  # results that are newer than the input and the dependencies, such as the model
    dependencies: tuple[Path, ...] = ()
    sheet: ContactSheet | None = None

    def __post_init__(self) -> None:
        self.pictures = self.frames = self.skipped = self.failed = 0
        self.frame_formats = tuple(name for name in self.formats if name != "overlay")  # that of a video is a video
        self._rows: Rows = []
        self._unreported: list[Item] = []  # which the model has seen
        self._videos: dict[Job, Video] = {}
        self._segmented = self._total = 0

    def segment(self, jobs: Sequence[Job], segmenter: Segmenter, task: Task) -> None:
        """Segment pictures and videos in the order given; failures are printed and counted."""
        self._segmenter, self._task, self._total = segmenter, task, len(jobs)
        with (
            closing(self._items(jobs)) as items,
            map_ahead(_read, items, self.workers) as read,
            map_ahead(self._write, map(self._predict, read), self.workers) as written,
        ):
            for job, group in groupby(written, key=lambda item: item.job):
                if job in self._videos:
                    self._report_video(job, self._videos.pop(job), group)
                for item in group:  # noqa: B031 (those that no overlay has taken)
                    self._report(item)

    def end(self, out: Path, table: Path | None = None) -> None:
        """Write the CSV table and the contact sheet and print the summary; also after Ctrl-C."""
        for item in [item for item in self._unreported if item.result is None]:
            self._report(item)
        counts = [_plural(self.pictures, "picture")] if self.pictures or not self.frames else []
        counts += [_plural(self.frames, "frame")] if self.frames else []
        summary = f"{' and '.join(counts)} segmented into {out}"
        summary += f", {self.skipped} skipped (their results are there)" if self.skipped else ""
        summary += f", {self.failed} failed" if self.failed else ""
        if table:
            check_replaceable(table, CSV_MARK)
            with (
                atomic_write(table) as temporary,
                temporary.open("w", encoding="utf-8", errors="replace", newline="") as file,
            ):
                writer = csv.DictWriter(file, CSV_COLUMNS, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self._rows)
        if self.sheet:
            self.sheet.write()
        for path in (*([table] if table else []), *(self.sheet.paths if self.sheet else [])):
            summary += f"; wrote {path}"
        if self.failed != 1 or self.pictures or self.frames or self.skipped or table or self.sheet:
            print(summary, flush=True)  # of a single failed input the error says all

    def fail(self, error: FusionerError, path: str | Path = "", frame: int | None = None) -> None:
        """Report the failure of an input or of a frame."""
        print_error(error)
        self._rows.append({"picture": str(path), "frame": frame, "error": error})
        self.failed += 1

    def _items(self, jobs: Iterable[Job]) -> Generator[Item, None, None]:
        """Yield pictures and frames. Pipes are read here: Ctrl-C interrupts the main thread only."""
        for job in jobs:
            if is_video(job.path):
                yield from self._video_items(job)
                continue
            item = Item(job, job.path)
            try:
                if job.path == STDIN:
                    item.image = read_stdin()
                self._skip_existing(item, self.formats)
            except FusionerError as error:
                item.error = error
            yield item

    def _video_items(self, job: Job) -> Iterator[Item]:
        step, with_overlay = self.frame_step, "overlay" in self.formats
        if with_overlay and self.is_newer([job.folder / f"{job.stem}{VIDEO_OVERLAY}"], job.path):
            first = Item(job, frame=0)
            self._skip_existing(first, self.frame_formats)
            if first.skipped:  # the overlay is written last
                first.rows = []
                yield first
                return
        try:
            with open_video(job.path) as video:
                self._videos[job] = video
                expected, items = -(-(video.count or step) // step), 0
                self._total += expected - 1
                with closing(taken_ahead(iter(video.frames(step)), min(1, self.workers))) as frames:
                    for frame in frames:
                        item = Item(job, frame.rgb, frame.index, frame.time)
                        if not with_overlay:  # which needs every frame
                            self._skip_existing(item, self.formats)
                        items += 1
                        yield item
                self._total += items - expected + bool(video.damage)
                if video.damage:
                    raise FusionerError(video.damage)
        except FusionerError as error:
            yield Item(job, error=error)

    def _skip_existing(self, item: Item, formats: Sequence[str]) -> None:
        """Mark the item as skipped if its results exist, are up to date and, as its JSON says, of the same settings."""
        paths = {name: item.job.folder / f"{item.stem}{FORMATS[name].suffix}" for name in formats}
        if not self.is_newer(paths.values(), item.job.path):
            return
        if "json" in paths:
            options = self._segmenter.resolve(self.options)
            expected = {"image": item.title(item.job.name), "labels": list(self.labels)}
            expected |= options.to_dict() | {"model": self._segmenter.model_id}
            try:
                values = json.loads(paths["json"].read_bytes())
                if any(values[key] != value for key, value in expected.items()):
                    return
                item.rows = [_segment_row(item, segment) for segment in values["segments"]]
            except (OSError, ValueError, KeyError, TypeError):  # not a file of ours
                return
        item.skipped = True

    def is_newer(self, results: Iterable[Path], source: Path) -> bool:
        """Return whether results can be skipped: all exist, and none is older than its source or a dependency."""
        if not self.skip_existing or source == STDIN:
            return False
        try:
            changed = max(path.stat().st_mtime for path in (source, *self.dependencies))
            return all(path.stat().st_mtime >= changed for path in results)
        except OSError:
            return False

    def _predict(self, item: Item) -> Item:
        if not item.error and not item.skipped:
            labels, options = self.labels, self.options
            try:
                item.result = self._segmenter(item.image, labels, options, on_progress=self._show_window)
                item.result.name = item.title(item.job.name)
            except FusionerError as error:
                item.error = FusionerError(f"{item.title(item.job.path)}: {error}")
        self._unreported.append(item)
        self._segmented += 1
        self._task(self._segmented, self._total)
        return item

    def _show_window(self, done: int, total: int) -> None:
        self._task(self._segmented + done / total, self._total, f"window {done}/{total}" if total > 1 else "")

    def _write(self, item: Item) -> Item:
        """Write the results and drop everything that is no longer needed from memory."""
        try:
            if item.result:
                self._save(item, item.result)
        except FusionerError as error:
            item.error = error
        item.image, item.result = b"", None
        return item

    def _save(self, item: Item, result: Segmentation) -> None:
        formats = self.formats if item.frame is None else self.frame_formats
        paths = list(result.save(item.job.folder, item.stem, formats).values())
        item.message = f"{item.title(item.job.path)}: {found_text(result)}" + (f" -> {paths[0]}" if paths else "")
        item.rows = [_segment_row(item, vars(segment)) for segment in segments(result)]
        if self.sheet:
            item.thumbnail = thumbnail(result, item.title(item.job.name))
        if formats != self.formats:
            item.drawing = add_legend(result.overlay(legend=False), result.labels)

    def _report(self, item: Item) -> None:
        self._unreported.remove(item)
        print_notes(item.notes)
        if item.error:
            self.fail(item.error, item.job.path, item.frame)
            return
        self._rows += item.rows
        if item.skipped:
            self.skipped += 1
            return
        print(item.message, flush=True)
        if self.sheet and item.thumbnail:
            self.sheet.add(item.thumbnail)
        self.pictures += item.frame is None
        self.frames += item.frame is not None

    def _report_video(self, job: Job, video: Video, items: Iterable[Item]) -> None:
        """Report frames while the overlay is written: if that fails, `items` are left over."""
        target = job.folder / f"{job.stem}{VIDEO_OVERLAY}"
        try:
            with write_video(target, video.rate / self.frame_step) as writer:
                for item in items:
                    self._report(item)
                    if item.drawing:
                        writer.add(item.drawing, item.time)
            if writer.count:
                print(f"{job.path}: {_plural(writer.count, 'frame')} -> {target}{writer.remark}", flush=True)
        except FusionerError as error:
            self.fail(error, job.path)


def read_stdin() -> bytes:
    """Return the content of the standard input; FusionerError when it cannot be read."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise cannot_read("the standard input", error) from error


def _read(item: Item) -> Item:
    if not item.error and not item.skipped:
        name = "standard input" if item.job.path == STDIN else None
        try:
            item.image = read_image(item.image, name, on_note=item.notes.append)
        except FusionerError as error:
            item.error = error
    return item


def found_text(result: Segmentation) -> str:
    """Return `cat 61.4 %, sofa 2.8 %; not found: dog (at most 0.02)`, the largest first.

    In brackets is the highest probability of a label, and the label that is likelier there.
    """
    regions = Counter(region.label for region in result.regions)
    found = [
        f"{label} {format_coverage(coverage)}" + (f" in {_plural(regions[label], 'region')}" if regions else "")
        for label, coverage in result.found.items()
    ]
    missing = [_missing_text(result, label) for label in result.labels if label not in result.found]
    text = f"{_list(found)}; not found: " if found else "nothing found: "
    return text + _list(missing) if missing else _list(found)


def _missing_text(result: Segmentation, label: str) -> str:
    if winner := result.outscored.get(label):
        return f"{label} ({result.peaks[label]:.2f}, but {winner} is likelier there)"
    hint = ", no common English word" if label.isascii() and find_uncommon([label]) else ""
    return f"{label} (at most {max(0.01, result.peaks[label]):.2f}{hint})"


def _list(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _segment_row(item: Item, segment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the CSV row of a label from a `Segment`'s values, which the JSON of a result holds too."""
    row = {name: segment[name] for name in ("label", "pixels", "coverage", "score", "peak", "outscored_by")}
    row |= {"picture": str(item.job.path), "frame": item.frame, "found": "true" if segment["pixels"] else "false"}
    return row | {"box": " ".join(map(str, segment["box"])) if segment["pixels"] else ""}
