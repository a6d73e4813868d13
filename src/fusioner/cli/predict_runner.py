"""A run of `fusioner predict`: threads read pictures ahead and write results behind, the model works in between."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusioner.base_segmenter import BaseSegmenter
from fusioner.cli.csv_report import segments
from fusioner.cli.inputs import STDIN, VIDEO_ENDING, Job, is_video
from fusioner.cli.pieces import Asked, Piece, found_text, read, source
from fusioner.errors import FusionerError
from fusioner.prefetch import map_ahead, taken_ahead
from fusioner.video import open_video, write_video
from fusioner.visualization import add_legend, thumbnail

if TYPE_CHECKING:
    from fusioner.cli.csv_report import Summary
    from fusioner.cli.progress import Meter
    from fusioner.cli.skip_existing import Earlier
    from fusioner.segmentation import Segmentation
    from fusioner.visualization import ContactSheet


class Run:
    """Sees every input through, tells of it and counts.

    Attributes:
        pictures, frames: segmented.
        skipped: pictures, frames and whole videos left alone.
        failed: told on stderr.
    """

    def __init__(
        self,
        asked: Asked,
        workers: int,
        summary: "Summary | None" = None,
        sheet: "ContactSheet | None" = None,
    ) -> None:
        """`workers`: threads that read, and as many that write."""
        self.asked, self.workers, self.summary, self.sheet = asked, workers, summary, sheet
        self.pictures = self.frames = self.skipped = self.failed = 0
        self._numbers, self._ended, self._total = count(), 0, 0
        self._written: dict[int, Piece] = {}  # and not reported yet

    def segment(
        self,
        jobs: Sequence[Job],
        segmenter: BaseSegmenter,
        every: int,
        meter: "Meter",
        earlier: "Earlier | None" = None,
    ) -> None:
        """Segment pictures, and frames 0, `every`, 2 * `every` ... of videos, in the order given.

        With `earlier` those are left alone whose results it knows.
        """
        self._segmenter, self._meter, self._earlier, self._total = segmenter, meter, earlier, len(jobs)
        for video, some in groupby(jobs, key=lambda job: is_video(job.path)):
            if not video:
                self._pictures(some)
                continue
            for job in some:
                try:
                    self._video(job, every)
                except FusionerError as error:
                    self.fail(error, job.path)

    def end(self, out: Path) -> None:
        """Write what is written at the end, and say in a line what was done; after Ctrl-C too."""
        for number in sorted(self._written):
            self._report(self._written[number])
        told = [counted(self.pictures, "picture")] if self.pictures or not self.frames else []
        told = " and ".join(told + ([counted(self.frames, "frame")] if self.frames else []))
        told += f" segmented into {out}"
        told += f", {self.skipped} skipped (their results are there)" if self.skipped else ""
        told += f", {self.failed} failed" if self.failed else ""
        for file in (self.summary, self.sheet):
            if file:
                file.write()
                told += "".join(f"; wrote {path}" for path in file.paths)
        print(told, flush=True)

    def fail(self, error: FusionerError, path: str | Path = "") -> None:
        """Tell of an error; `path` is the input that failed as a whole."""
        self._tell(error)
        if self.summary:
            self.summary.fail(next(self._numbers), str(path), None, error)

    def _tell(self, error: FusionerError) -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)
        self.failed += 1

    def _pictures(self, jobs: Iterable[Job]) -> None:
        pieces = self._needed((self._picture(job) for job in jobs), self.asked.kinds)
        with map_ahead(_read, pieces, self.workers) as read, self._finish(read) as finished:
            for piece in finished:
                self._report(piece)

    def _picture(self, job: Job) -> Piece:
        """Pipes are read here, in the main thread, which alone is woken by Ctrl-C."""
        return Piece(next(self._numbers), job, source(job.path))

    def _video(self, job: Job, every: int) -> None:
        target, others, before = job.folder / f"{job.stem}{VIDEO_ENDING}", self._total - 1, self._ended
        with ExitStack() as stack:
            video = stack.enter_context(open_video(job.path))
            if self._video_was_made(job, target):
                self._skip(Piece(next(self._numbers), job, job.path), [])
                return
            self._total = others + -(-(video.count or every) // every)
            writer = stack.enter_context(write_video(target, video.rate / every))
            frames = stack.enter_context(closing(taken_ahead(iter(video.frames(every)), min(1, self.workers))))
            pieces = (Piece(next(self._numbers), job, frame.rgb, frame.index, frame.time) for frame in frames)
            # Without all frames there is no video of them.
            needed = pieces if "overlay" in self.asked.kinds else self._needed(pieces, self.asked.frame_kinds)
            for piece in stack.enter_context(self._finish(needed)):
                self._report(piece)
                if piece.drawn:
                    writer.add(piece.drawn, piece.time)
        self._total = others + self._ended - before
        if writer.count:
            print(f"{job.path}: {counted(writer.count, 'frame')} -> {target}{writer.remark}", flush=True)
        if video.damage:
            self.fail(FusionerError(video.damage), job.path)

    def _video_was_made(self, job: Job, target: Path) -> bool:
        """Its overlay, which is written last, is there and the files of its first frame are."""
        if not self._earlier or "overlay" not in self.asked.kinds or not self._earlier.newer(job.path, [target]):
            return False
        return self._known(Piece(0, job, b"", index=0), self.asked.frame_kinds) is not None

    def _needed(self, pieces: Iterable[Piece], kinds: Sequence[str]) -> Iterator[Piece]:
        """Those that were not made by an earlier run."""
        for piece in pieces:
            known = self._known(piece, kinds)
            if known is None:
                yield piece
            else:
                self._skip(piece, known)

    def _known(self, piece: Piece, kinds: Sequence[str]) -> list[dict[str, Any]] | None:
        if self._earlier is None or piece.job.path == STDIN:
            return None
        name = piece.named(piece.job.name)
        return self._earlier.find(piece.job.path, name, piece.job.folder, piece.stem, kinds)

    def _skip(self, piece: Piece, known: list[dict[str, Any]]) -> None:
        self.skipped += 1
        self._step()
        if self.summary:
            self.summary.add(piece.number, str(piece.job.path), piece.index, known)

    def _finish(self, pieces: Iterable[Piece]) -> AbstractContextManager[Iterator[Piece]]:
        return map_ahead(self._write, map(self._segment, pieces), self.workers)

    def _segment(self, piece: Piece) -> Piece:
        if piece.error is None:
            try:
                piece.result = self.asked.of(piece.source, self._segmenter, self._window)
                piece.result.name = piece.named(piece.job.name)
            except FusionerError as error:
                piece.error = FusionerError(f"{piece.named(piece.job.path)}: {error}")
        self._step()
        return piece

    def _window(self, done: int, total: int) -> None:
        self._meter(self._ended + done / total, self._total, f"window {done}/{total}" if total > 1 else "")

    def _step(self) -> None:
        self._ended += 1
        self._meter(self._ended, self._total)

    def _write(self, piece: Piece) -> Piece:
        """Keep what was asked for, and no more than is still needed in memory."""
        if piece.result:
            try:
                self._keep(piece, piece.result)
            except FusionerError as error:
                piece.error = error
        if piece.error and self.summary:
            self.summary.fail(piece.number, str(piece.job.path), piece.index, piece.error)
        piece.source, piece.result = b"", None
        self._written[piece.number] = piece
        return piece

    def _keep(self, piece: Piece, result: "Segmentation") -> None:
        kinds = self.asked.kinds if piece.index is None else self.asked.frame_kinds
        paths = list(result.save(piece.job.folder, piece.stem, kinds).values())
        piece.told = f"{piece.named(piece.job.path)}: {found_text(result)}" + (f" -> {paths[0]}" if paths else "")
        if self.summary:
            self.summary.add(piece.number, str(piece.job.path), piece.index, segments(result))
        if self.sheet:
            piece.thumbnail = thumbnail(result, piece.named(piece.job.name))
        if kinds != self.asked.kinds:
            piece.drawn = add_legend(result.overlay(legend=False), result.labels)

    def _report(self, piece: Piece) -> None:
        self._written.pop(piece.number)
        if piece.error:
            self._tell(piece.error)
            return
        print(piece.told, flush=True)
        if self.sheet and piece.thumbnail:
            self.sheet.add(piece.thumbnail)
        if piece.index is None:
            self.pictures += 1
        else:
            self.frames += 1


def _read(piece: Piece) -> Piece:
    try:
        piece.source = read(piece.source)
    except FusionerError as error:
        piece.error = error
    return piece


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
