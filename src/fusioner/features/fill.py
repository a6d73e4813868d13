"""The cache for whoever wants to train: what is missing is filled in, then everything is read from it."""

from collections.abc import Callable
from pathlib import Path

from fusioner.data.base import SegmentationData
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.build import Builder, Report
from fusioner.features.cache import FeatureCache, Shelf
from fusioner.features.dataset import CachedSource
from fusioner.features.plan import Plan, Track, check_room, plan, readable
from fusioner.features.preprocess import device_of
from fusioner.features.space import Dtype

_NAMED = 5  # broken images named in a message


def fill(
    cache: str | Path,
    data: SegmentationData,
    encoder: ImageEncoder,
    resolution: int,
    *,
    views: int = 1,
    dtype: Dtype = "fp16",
    batch_size: int | None = None,
    workers: int = 2,
    say: Callable[[str], object] = lambda _: None,
    track: Track | None = None,
) -> CachedSource:
    """Encode what is missing of a data set's views and give the source that reads them.

    Safe to be killed at any moment and to be run several times at once: work is shared, nothing is encoded twice.

    Args:
        cache: folder; made where missing.
        encoder: on the device it is to run on.
        resolution: side in pixels to which every picture is squashed.
        views: views of each image, 0 being the image itself (see `data.transforms.view`).
        dtype: "fp16", or "int8" at half the size.
        batch_size: views encoded together; None: 32 on a GPU, 4 on a CPU.
        workers: threads that read and decode images.
        say: takes a line for people before anything is encoded, and one afterwards.
        track: progress bars, for example `fusioner.cli.progress.progress`.

    Raises:
        FusionerError: not enough room on the disk, no permission to write, images that cannot be read (all others are
            then in the cache).
    """
    shelf = FeatureCache(cache).shelf(encoder, resolution, dtype)
    todo = plan(shelf, data.items, views, track=track)
    say(_before(todo, shelf))
    if todo.missing:
        check_room(todo, shelf.folder.parent)
        report = _build(todo, shelf, encoder, batch_size, workers, track)
        say(_after(report))
        if report.broken:
            names = "; ".join(report.broken[:_NAMED])
            raise FusionerError(f"{len(report.broken)} images could not be encoded (the others are): {names}")
    return CachedSource(shelf, data, todo.digests, views)


def _build(
    todo: Plan, shelf: Shelf, encoder: ImageEncoder, batch_size: int | None, workers: int, track: Track | None
) -> Report:
    size = batch_size or (4 if device_of(encoder).type == "cpu" else 32)
    bar = iter(track(range(todo.missing), "encoding views")) if track else iter(())
    next(bar, None)
    return Builder(shelf, encoder, size, workers, tick=lambda: next(bar, None)).run(todo)


def _before(todo: Plan, shelf: Shelf) -> str:
    space = shelf.space
    what = f"features of {space.encoder} at {space.resolution} px: {todo.present} views are in {shelf.folder.parent}"
    if not todo.missing:
        return f"{what}, none is missing"
    return f"{what}, {todo.missing} are missing and need {readable(todo.need)} of {readable(todo.free)} free"


def _after(report: Report) -> str:
    speed = report.encoded / max(report.seconds, 1e-9)
    line = f"encoded {report.encoded} views in {report.seconds:.1f} s ({speed:.1f}/s)"
    if report.elsewhere:
        line += f", {report.elsewhere} came from another builder"
    if report.rounding.tokens:
        line += (
            f"; int8 moves a token by {report.rounding.mean:.2%} of its length, {report.rounding.worst:.2%} at worst"
        )
    return line
