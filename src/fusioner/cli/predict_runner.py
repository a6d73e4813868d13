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

from fusioner.cli.inputs import STDIN, VIDEO_OVERLAY, InputFile, is_video
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
class Picture:
    """A picture, or frame number `frame` of a video, on its way through the loop."""

    source: InputFile
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
        return self.source.stem + ("" if self.frame is None else f"-{self.frame:06}")

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
        self._unreported: list[Picture] = []  # which the model has seen
        self._videos: dict[InputFile, Video] = {}
        self._segmented = self._total = 0

    def segment(self, sources: Sequence[InputFile], segmenter: Segmenter, task: Task) -> None:
        """Segment pictures and videos in the order given; failures are printed and counted."""
        self._segmenter, self._task, self._total = segmenter, task, len(sources)
        with (
            closing(self._pictures(sources)) as pictures,
            map_ahead(_read, pictures, self.workers) as read,
            map_ahead(self._write, map(self._predict, read), self.workers) as written,
        ):
            for source, group in groupby(written, key=lambda picture: picture.source):
                if source in self._videos:
                    self._report_video(source, self._videos.pop(source), group)
                for picture in group:  # noqa: B031 (those that no overlay has taken)
                    self._report(picture)

    def end(self, out: Path, table: Path | None = None) -> None:
        """Write the CSV table and the contact sheet and print the summary; also after Ctrl-C."""
        for picture in [picture for picture in self._unreported if picture.result is None]:
            self._report(picture)
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

    def _pictures(self, sources: Iterable[InputFile]) -> Generator[Picture, None, None]:
        """Yield pictures and frames. Pipes are read here: Ctrl-C interrupts the main thread only."""
        for source in sources:
            if is_video(source.path):
                yield from self._video_frames(source)
                continue
            picture = Picture(source, source.path)
            try:
                if source.path == STDIN:
                    picture.image = read_stdin()
                self._skip_existing(picture, self.formats)
            except FusionerError as error:
                picture.error = error
            yield picture

    def _video_frames(self, source: InputFile) -> Iterator[Picture]:
        step, with_overlay = self.frame_step, "overlay" in self.formats
        if with_overlay and self.is_newer([source.folder / f"{source.stem}{VIDEO_OVERLAY}"], source.path):
            first = Picture(source, frame=0)
            self._skip_existing(first, self.frame_formats)
            if first.skipped:  # the overlay is written last
                first.rows = []
                yield first
                return
        try:
            with open_video(source.path) as video:
                self._videos[source] = video
                expected, pictures = -(-(video.count or step) // step), 0
                self._total += expected - 1
                with closing(taken_ahead(iter(video.frames(step)), min(1, self.workers))) as frames:
                    for frame in frames:
                        picture = Picture(source, frame.rgb, frame.index, frame.time)
                        if not with_overlay:  # which needs every frame
                            self._skip_existing(picture, self.formats)
                        pictures += 1
                        yield picture
                self._total += pictures - expected + bool(video.damage)
                if video.damage:
                    raise FusionerError(video.damage)
        except FusionerError as error:
            yield Picture(source, error=error)

    def _skip_existing(self, picture: Picture, formats: Sequence[str]) -> None:
        """Mark the picture as skipped if its results are up to date and, as its JSON says, of the same settings."""
        paths = {name: picture.source.folder / f"{picture.stem}{FORMATS[name].suffix}" for name in formats}
        if not self.is_newer(paths.values(), picture.source.path):
            return
        if "json" in paths:
            options = self._segmenter.resolve(self.options)
            expected = {"image": picture.title(picture.source.name), "labels": list(self.labels)}
            expected |= options.to_dict() | {"model": self._segmenter.model_id}
            try:
                values = json.loads(paths["json"].read_bytes())
                if any(values[key] != value for key, value in expected.items()):
                    return
                picture.rows = [_segment_row(picture, segment) for segment in values["segments"]]
            except (OSError, ValueError, KeyError, TypeError):  # not a file of ours
                return
        picture.skipped = True

    def is_newer(self, results: Iterable[Path], source: Path) -> bool:
        """Return whether results can be skipped: all exist, and none is older than its source or a dependency."""
        if not self.skip_existing or source == STDIN:
            return False
        try:
            changed = max(path.stat().st_mtime for path in (source, *self.dependencies))
            return all(path.stat().st_mtime >= changed for path in results)
        except OSError:
            return False

    def _predict(self, picture: Picture) -> Picture:
        if not picture.error and not picture.skipped:
            labels, options = self.labels, self.options
            try:
                picture.result = self._segmenter(picture.image, labels, options, on_progress=self._show_window)
                picture.result.name = picture.title(picture.source.name)
            except FusionerError as error:
                picture.error = FusionerError(f"{picture.title(picture.source.path)}: {error}")
        self._unreported.append(picture)
        self._segmented += 1
        self._task(self._segmented, self._total)
        return picture

    def _show_window(self, done: int, total: int) -> None:
        self._task(self._segmented + done / total, self._total, f"window {done}/{total}" if total > 1 else "")

    def _write(self, picture: Picture) -> Picture:
        """Write the results and drop everything that is no longer needed from memory."""
        try:
            if picture.result:
                self._save(picture, picture.result)
        except FusionerError as error:
            picture.error = error
        picture.image, picture.result = b"", None
        return picture

    def _save(self, picture: Picture, result: Segmentation) -> None:
        formats = self.formats if picture.frame is None else self.frame_formats
        paths = list(result.save(picture.source.folder, picture.stem, formats).values())
        written = f" -> {paths[0]}" if paths else ""
        picture.message = f"{picture.title(picture.source.path)}: {found_text(result)}{written}"
        picture.rows = [_segment_row(picture, vars(segment)) for segment in segments(result)]
        if self.sheet:
            picture.thumbnail = thumbnail(result, picture.title(picture.source.name))
        if formats != self.formats:
            picture.drawing = add_legend(result.overlay(legend=False), result.labels)

    def _report(self, picture: Picture) -> None:
        self._unreported.remove(picture)
        print_notes(picture.notes)
        if picture.error:
            self.fail(picture.error, picture.source.path, picture.frame)
            return
        self._rows += picture.rows
        if picture.skipped:
            self.skipped += 1
            return
        print(picture.message, flush=True)
        if self.sheet and picture.thumbnail:
            self.sheet.add(picture.thumbnail)
        self.pictures += picture.frame is None
        self.frames += picture.frame is not None

    def _report_video(self, source: InputFile, video: Video, pictures: Iterable[Picture]) -> None:
        """Report frames while the overlay is written: if that fails, `pictures` are left over."""
        target = source.folder / f"{source.stem}{VIDEO_OVERLAY}"
        try:
            with write_video(target, video.rate / self.frame_step) as writer:
                for picture in pictures:
                    self._report(picture)
                    if picture.drawing:
                        writer.add(picture.drawing, picture.time)
            if writer.count:
                print(f"{source.path}: {_plural(writer.count, 'frame')} -> {target}{writer.remark}", flush=True)
        except FusionerError as error:
            self.fail(error, source.path)


def read_stdin() -> bytes:
    """Return the content of the standard input; FusionerError when it cannot be read."""
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise cannot_read("the standard input", error) from error


def _read(picture: Picture) -> Picture:
    if not picture.error and not picture.skipped:
        name = "standard input" if picture.source.path == STDIN else None
        try:
            picture.image = read_image(picture.image, name, on_note=picture.notes.append)
        except FusionerError as error:
            picture.error = error
    return picture


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


def _segment_row(picture: Picture, segment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the CSV row of a label from a `Segment`'s values, which the JSON of a result holds too."""
    row = {name: segment[name] for name in ("label", "pixels", "coverage", "score", "peak", "outscored_by")}
    row |= {
        "picture": str(picture.source.path),
        "frame": picture.frame,
        "found": "true" if segment["pixels"] else "false",
    }
    return row | {"box": " ".join(map(str, segment["box"])) if segment["pixels"] else ""}
