"""Encode the missing views of a data set into a feature cache."""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.data.base import Item, SegmentationData
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.cache import FeatureCache, device_of, image_digest, load_views, read_bytes, remove_stale_files
from fusioner.features.dataset import CachedSource
from fusioner.io import format_bytes
from fusioner.prefetch import map_ahead
from fusioner.progress import Track, no_progress

_HEADER_BYTES = 768  # upper estimate for one entry
_MAX_LISTED = 5  # broken images named in an error


class MissingView(NamedTuple):
    """A view to encode."""

    digest: str
    image: Path
    view: int


@dataclass
class Plan:
    """Work of a build: sha256 of the image files by image id, views to encode, views present, bytes needed and free."""

    digests: dict[str, str]
    missing: list[MissingView]
    present: int
    need: int
    free: int


@dataclass
class Report:
    """Result of a build: views encoded, views that another process added meanwhile, and errors by image digest."""

    encoded: int = 0
    elsewhere: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)


def cache_features(
    folder: str | Path,
    data: SegmentationData,
    encoder: ImageEncoder,
    resolution: int,
    *,
    views: int = 1,
    batch_size: int | None = None,
    workers: int = 2,
    say: Callable[[str], object] = lambda _: None,
    track: Track = no_progress,
) -> CachedSource:
    """Encode the views of a data set that the cache lacks and return a source that reads all of them.

    The process may be killed at any time and started again; several processes may build at once and share the work.

    Args:
        views: number of views of each image; view 0 is the image itself (see `data.augment.view`).
        batch_size: views encoded together; None: 32 on a GPU, 4 on a CPU.
        workers: threads that read and decode images.
        say: receives one line before anything is encoded and one afterwards.
        track: progress bars, for example of `fusioner.progress.progress`.

    Raises FusionerError for too little disk space, or images that cannot be read (all others are cached by then).
    """
    cache = FeatureCache(folder, encoder, resolution)
    plan = plan_build(cache, data.items, views, track=track)
    need, free = format_bytes(plan.need), format_bytes(plan.free)
    missing = f"{len(plan.missing)} are missing and need {need} of {free} free" if plan.missing else "none is missing"
    say(f"features of {encoder.name} at {resolution} px: {plan.present} views are in {cache.root}, {missing}")
    if plan.need > plan.free:
        raise FusionerError(
            f"{len(plan.missing)} views need {need}, but {cache.root} has {free} free: free some space, choose another "
            "folder, or use fewer views or a lower resolution"
        )
    if plan.missing:
        size = batch_size or (4 if device_of(encoder).type == "cpu" else 32)
        bar = iter(track(range(len(plan.missing)), "encoding views"))
        next(bar, None)
        report = encode_missing(cache, plan.missing, size, workers, tick=lambda: next(bar, None))
        speed = report.encoded / max(report.seconds, 1e-9)
        shared = f", {report.elsewhere} came from another process" if report.elsewhere else ""
        say(f"encoded {report.encoded} views in {report.seconds:.1f} s ({speed:.1f}/s){shared}")
        if report.broken:
            messages = "; ".join(list(report.broken.values())[:_MAX_LISTED])
            raise FusionerError(f"{len(report.broken)} images could not be encoded (the others are): {messages}")
    return CachedSource(cache, data, plan.digests, views)


def plan_build(
    cache: FeatureCache, items: Sequence[Item], views: int = 1, workers: int = 4, track: Track = no_progress
) -> Plan:
    """Hash every image file and list the views that are missing."""
    if views < 1:
        raise FusionerError(f"an image has at least 1 view, not {views}")
    with ThreadPoolExecutor(workers) as pool:
        hashed = pool.map(lambda item: image_digest(read_bytes(item.image)), items)
        digests = {item.id: digest for item, digest in zip(track(items, "checking images"), hashed, strict=True)}
    images = {digests[item.id]: item.image.absolute() for item in reversed(items)}  # the first of equal images
    wanted = [
        MissingView(digest, images[digest], view) for digest in dict.fromkeys(digests.values()) for view in range(views)
    ]
    missing = [entry for entry in wanted if not cache.contains(entry.digest, entry.view)]
    need = len(missing) * (cache.key.entry_bytes + _HEADER_BYTES)
    return Plan(digests, missing, len(wanted) - len(missing), need, free_bytes(cache.root))


def encode_missing(
    cache: FeatureCache,
    missing: Sequence[MissingView],
    batch_size: int = 4,
    workers: int = 2,
    tick: Callable[[], object] = lambda: None,
) -> Report:
    """Encode and store views, calling `tick` once per view; images that cannot be read are listed in the report."""
    report, start, size = Report(), time.monotonic(), max(1, batch_size)
    remove_stale_files(cache.root)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    random.SystemRandom().shuffle(batches)  # so that concurrent processes rarely encode the same images
    with map_ahead(lambda batch: _load_batch(cache, batch), batches, max(1, workers)) as loaded:
        for batch, (views, pixels, broken) in zip(batches, loaded, strict=True):
            tokens = cache.encode(torch.stack(pixels)) if pixels else ()
            for view, view_tokens in zip(views, tokens, strict=True):
                cache.put(view.digest, view.view, view.image, view_tokens)
            report.encoded += len(views)
            report.elsewhere += sum(entry not in views and entry.digest not in broken for entry in batch)
            report.broken |= broken
            for _ in batch:
                tick()
    order = dict.fromkeys(entry.digest for entry in missing)
    report.broken = {digest: report.broken[digest] for digest in order if digest in report.broken}
    report.seconds = time.monotonic() - start
    return report


def _load_batch(
    cache: FeatureCache, batch: Sequence[MissingView]
) -> tuple[list[MissingView], list[Float[Tensor, "3 s s"]], dict[str, str]]:
    """Return the views still missing, their pixels, and errors by digest; each image is decoded once."""
    views, pixels, broken = [], [], {}
    for digest, of_image in groupby(batch, key=lambda entry: entry.digest):
        wanted = [entry for entry in of_image if not cache.contains(digest, entry.view)]
        if not wanted:
            continue
        try:
            pixels += load_views(wanted[0].image, digest, [entry.view for entry in wanted], cache.key.resolution)
            views += wanted
        except FusionerError as error:
            broken[digest] = str(error)
    return views, pixels, broken


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the device on which a folder is or would be created."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
