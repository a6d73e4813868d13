"""Encode the missing views of a data set into a feature cache."""

import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

HEADER_BYTES = 768  # upper estimate for one entry
_MAX_LISTED = 5  # broken images named in an error
ENCODED, ELSEWHERE = "encoded", "another process added it"
"""Outcomes of a view to encode, besides the error of its image."""


class MissingView(NamedTuple):
    """A view to encode."""

    digest: str
    image: Path
    view: int


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

    Raises FusionerError for too little disk space, or images that cannot be read (all others are cached by then).
    """
    cache = FeatureCache(folder, encoder, resolution)
    digests, missing = find_missing(cache, data.items, views, track)
    need, free = len(missing) * (cache.key.entry_bytes + HEADER_BYTES), free_bytes(cache.root)
    sizes = f"{format_bytes(need)}", f"{format_bytes(free)} free"
    present = len(set(digests.values())) * views - len(missing)
    lacking = f"{len(missing)} are missing and need {sizes[0]} of {sizes[1]}" if missing else "none is missing"
    say(f"features of {encoder.name} at {resolution} px: {present} views are in {cache.root}, {lacking}")
    if need > free:
        raise FusionerError(
            f"{len(missing)} views need {sizes[0]}, but {cache.root} has {sizes[1]}: free some space, choose another "
            "folder, or use fewer views or a lower resolution"
        )
    if missing:
        size, start = batch_size or (4 if device_of(encoder).type == "cpu" else 32), time.monotonic()
        done = encode_missing(cache, missing, size, workers)
        outcomes = [outcome for _, outcome in zip(track(missing, "encoding views"), done, strict=True)]
        encoded, elsewhere = outcomes.count(ENCODED), outcomes.count(ELSEWHERE)
        seconds = time.monotonic() - start
        shared = f", {elsewhere} came from another process" if elsewhere else ""
        say(f"encoded {encoded} views in {seconds:.1f} s ({encoded / max(seconds, 1e-9):.1f}/s){shared}")
        if broken := sorted(set(outcomes) - {ENCODED, ELSEWHERE}):
            messages = "; ".join(broken[:_MAX_LISTED])
            raise FusionerError(f"{len(broken)} images could not be encoded (the others are): {messages}")
    return CachedSource(cache, data, digests, views)


def find_missing(
    cache: FeatureCache, items: Sequence[Item], views: int = 1, track: Track = no_progress
) -> tuple[dict[str, str], list[MissingView]]:
    """Hash every image file; return the sha256 of each by image id, and the views that are missing."""
    if views < 1:
        raise FusionerError(f"an image has at least 1 view, not {views}")
    with ThreadPoolExecutor(4) as pool:
        hashed = pool.map(lambda item: image_digest(read_bytes(item.image)), items)
        digests = {item.id: digest for item, digest in zip(track(items, "checking images"), hashed, strict=True)}
    images = {digests[item.id]: item.image.absolute() for item in reversed(items)}  # the first of equal images
    wanted = [(digest, view) for digest in dict.fromkeys(digests.values()) for view in range(views)]
    missing = [MissingView(digest, images[digest], view) for digest, view in wanted if not cache.contains(digest, view)]
    return digests, missing


def encode_missing(
    cache: FeatureCache, missing: Sequence[MissingView], batch_size: int = 4, workers: int = 2
) -> Iterator[str]:
    """Encode and store views; yield, once per view, `ENCODED`, `ELSEWHERE` or the error of its image."""
    remove_stale_files(cache.root)
    size = max(1, batch_size)
    batches = [missing[first : first + size] for first in range(0, len(missing), size)]
    random.SystemRandom().shuffle(batches)  # so that concurrent processes rarely encode the same images
    with map_ahead(lambda batch: _load_batch(cache, batch), batches, max(1, workers)) as loaded:
        for outcomes, pixels in loaded:
            views = [view for view, outcome in outcomes.items() if outcome == ENCODED]
            tokens = cache.encode(torch.stack(pixels)) if pixels else ()
            for view, view_tokens in zip(views, tokens, strict=True):
                cache.put(view.digest, view.view, view.image, view_tokens)
            yield from outcomes.values()


def _load_batch(
    cache: FeatureCache, batch: Sequence[MissingView]
) -> tuple[dict[MissingView, str], list[Float[Tensor, "3 s s"]]]:
    """Return the outcome of each view, and the pixels of those to encode; each image is decoded once."""
    outcomes, pixels = dict.fromkeys(batch, ELSEWHERE), []
    for digest, of_image in groupby(batch, key=lambda entry: entry.digest):
        wanted = [entry for entry in of_image if not cache.contains(digest, entry.view)]
        if not wanted:
            continue
        try:
            pixels += load_views(wanted[0].image, digest, [entry.view for entry in wanted], cache.key.resolution)
            outcomes |= dict.fromkeys(wanted, ENCODED)
        except FusionerError as error:
            outcomes |= dict.fromkeys(wanted, str(error))
    return outcomes, pixels


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the device on which a folder is or would be created."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free
