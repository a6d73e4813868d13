"""Check that an exported model agrees with torch: on photos, at three input sizes, with few and many labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from fusioner.encoders.registry import method_of
from fusioner.image import resize
from fusioner.postprocess import decide_logits

if TYPE_CHECKING:
    from fusioner.segmenter import Segmenter

MAX_UNDECIDED = 0.25
LIMITS = {"fp32": (1e-4, 1e-4), "fp16": (float("inf"), 5e-3), "int8": (float("inf"), 1e-2)}
"""Precision -> limits of the logit difference and of the share of pixels whose label changes."""
COUNTS = (1, 7, 40)
LABELS = (
    *("cat", "person", "cup", "dog", "table", "car", "sofa", "chair", "bird", "bottle", "horse", "train", "flower"),
    *("tree", "grass", "sky", "wall", "window", "door", "lamp", "book", "clock", "plant", "bicycle", "boat", "bus"),
    *("helmet", "flag", "spoon", "plate", "shoe", "hat", "dress", "road", "building", "cow", "sheep", "aeroplane"),
    *("television", "keyboard"),
)


@dataclass(frozen=True)
class Row:
    """Differences at one input size and number of labels, over all photos.

    Attributes:
        height, width: px.
        labels: number of labels.
        logits: maximum logit difference; of pairs without training, of the cosines.
        pixels: share of pixels whose label changes, 0..1.
        undecided: share of patches left out of `logits`, see `encoders.proxyclip.ProxyEncoder.undecided`.
    """

    height: int
    width: int
    labels: int
    logits: float
    pixels: float
    undecided: float = 0.0

    def holds(self, precision: str) -> bool:
        """Return whether the differences are within `LIMITS`, with enough patches compared."""
        max_logits, max_pixels = LIMITS[precision]
        return self.logits <= max_logits and self.pixels <= max_pixels and self.undecided <= MAX_UNDECIDED


def sizes(resolution: int, step: int) -> list[tuple[int, int]]:
    """Return up to three input sizes (height, width): landscape, the training size, and a larger portrait."""
    if not step:
        return [(resolution, resolution)]
    smaller, larger = (max(1, round(resolution * share / step)) * step for share in (2 / 3, 4 / 3))
    return list(dict.fromkeys([(smaller, resolution), (resolution, resolution), (larger, resolution)]))


def compare(reference: "Segmenter", exported: "Segmenter", photos: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Row]:
    """Compare the exported model with torch: a row per input size and number of labels."""
    rows, card = [], reference.card
    unit = card.config.temperature if reference.is_softmax else 1.0  # scores are cosines over the temperature
    for height, width in sizes(card.resolution, exported.network.size_step):
        inputs = [resize(photo, (height, width))[None] for photo in photos]
        encoded = [[model.network.encode_images(pixels) for model in (reference, exported)] for pixels in inputs]
        decided = [_decided(reference, pixels) for pixels in inputs]
        undecided = 1 - float(np.mean(decided))
        for count in COUNTS:
            differences, changed, total = [0.0], 0, 0
            for photo, tokens, compared in zip(photos, encoded, decided, strict=True):
                before, after = (
                    model._forward_chunked(own, LABELS[:count], None)[0]
                    for model, own in zip((reference, exported), tokens, strict=True)
                )
                differences.append(unit * float((np.abs(before - after) * compared).max()))
                old, new = (decide_logits(logits, photo.shape[:2], card.threshold)[0] for logits in (before, after))
                changed, total = changed + int((old != new).sum()), total + old.size
            rows.append(Row(height, width, count, max(differences), changed / total, undecided))
    return rows


def _decided(reference: "Segmenter", pixels: UInt8[np.ndarray, "1 h w 3"]) -> Bool[np.ndarray, "gh gw"]:
    """Return the patches whose logits are compared: all, but of a pair A+B those that rounding does not decide."""
    if method_of(reference.card.image_encoder) != "proxyclip":
        return np.ones((1, 1), bool)
    import torch

    encoder: Any = reference.image_encoder
    images = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
    return ~encoder.undecided(images)[0].numpy()


def table(rows: Sequence[Row], precision: str) -> Iterator[str]:
    """Yield the lines of a table; the last column marks rows over the limit."""
    yield f"{'size':>9}  labels  max |logit difference|  pixels that change"
    for row in rows:
        note = f"  without {row.undecided:.1%} of the patches" if row.undecided else ""
        note += "" if row.holds(precision) else "  over the limit"
        yield f"{row.height:>4}x{row.width:<4}  {row.labels:>6}  {row.logits:>22.2e}  {row.pixels:>17.4%}{note}"
