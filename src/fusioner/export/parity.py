"""Whether an exported model answers as torch does: on real photographs, at three sizes, with few labels and many."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from fusioner.backend import Array, to_numpy
from fusioner.postprocess import decide_logits

if TYPE_CHECKING:
    from fusioner.base_segmenter import BaseSegmenter
    from fusioner.export.segmenter import ExportedSegmenter
    from fusioner.segmenter import Segmenter

LIMITS = {"fp32": (1e-4, 1e-4), "fp16": (float("inf"), 5e-3), "int8": (float("inf"), 1e-2)}
"""Precision -> the largest difference of logits, and the largest share of pixels whose label changes."""
COUNTS = (1, 7, 40)
LABELS = (
    *("cat", "person", "cup", "dog", "table", "car", "sofa", "chair", "bird", "bottle", "horse", "train", "flower"),
    *("tree", "grass", "sky", "wall", "window", "door", "lamp", "book", "clock", "plant", "bicycle", "boat", "bus"),
    *("helmet", "flag", "spoon", "plate", "shoe", "hat", "dress", "road", "building", "cow", "sheep", "aeroplane"),
    *("television", "keyboard"),
)


@dataclass(frozen=True)
class Row:
    """One size of the image part's input and one number of labels, over all photographs.

    Attributes:
        height, width: px.
        labels: how many.
        logits: largest difference of any logit.
        pixels: share of the photographs' pixels whose label changes, 0..1.
    """

    height: int
    width: int
    labels: int
    logits: float
    pixels: float

    def holds(self, precision: str) -> bool:
        """Whether it is within `LIMITS`."""
        most = LIMITS[precision]
        return self.logits <= most[0] and self.pixels <= most[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def sizes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Three sizes (height, width) that the image part is asked: flat, the training size, upright and larger."""
    if not step:
        return [(resolution, resolution)]
    smaller, larger = (max(1, round(resolution * share / step)) * step for share in (2 / 3, 4 / 3))
    return [(smaller, resolution), (resolution, resolution), (larger, resolution)]


def compare(
    ours: "Segmenter", exported: "ExportedSegmenter", photos: Sequence[UInt8[np.ndarray, "h w 3"]]
) -> list[Row]:
    """A row for every size and number of labels."""
    rows = []
    with torch.inference_mode():
        for size in sizes(ours.card.resolution, exported.bundle.step):
            shown = [_shown(photo, size) for photo in photos]
            before = [ours._tokens(torch.from_numpy(pixels)) for pixels in shown]
            after = [exported._tokens(pixels) for pixels in shown]
            for count in COUNTS:
                differences, changed, all_ = [0.0], 0, 0
                for photo, one, two in zip(photos, before, after, strict=True):
                    logits = [_logits(*each, LABELS[:count]) for each in ((ours, one), (exported, two))]
                    differences.append(float(np.abs(to_numpy(logits[0]) - logits[1]).max()))
                    old, new = (
                        to_numpy(decide_logits(each, photo.shape[:2], ours.card.threshold)[0]) for each in logits
                    )
                    changed, all_ = changed + int((old != new).sum()), all_ + old.size
                rows.append(Row(*size, count, max(differences), changed / all_))
    return rows


def _shown(photo: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Float[np.ndarray, "1 3 h2 w2"]:
    """What both are shown."""
    small = np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(small.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


def _logits(segmenter: "BaseSegmenter", tokens: Any, labels: Sequence[str]) -> Float[Array, "k h w"]:
    """At the network's own resolution."""
    return segmenter._network(tokens, segmenter.embed(labels), None)[0]


def table(rows: Sequence[Row], precision: str) -> Iterator[str]:
    """Lines to print; the last column says what is over the limit."""
    yield f"{'size':>9}  labels  max |logit difference|  pixels that change"
    for row in rows:
        note = "" if row.holds(precision) else "  over the limit"
        yield f"{row.height:>4}x{row.width:<4}  {row.labels:>6}  {row.logits:>22.2e}  {row.pixels:>17.4%}{note}"
