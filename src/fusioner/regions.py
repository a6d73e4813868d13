"""Masks as COCO's compressed run lengths, and the connected regions of a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt16
from pycocotools import mask as coco

from fusioner.polygons import Polygon, join_holes, trace_polygons

RunLengths: TypeAlias = dict[str, Any]
"""COCO's compressed run-length encoding: {"size": [height, width], "counts": str}."""
MIN_REGION = 5e-4  # share of the image


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> RunLengths:
    """Return the run lengths of a mask."""
    return _as_text(coco.encode(np.asfortranarray(mask).view(np.uint8)))


def encode_empty(size: tuple[int, int]) -> RunLengths:
    """Return the run lengths of a mask without pixels, of `size` (height, width)."""
    empty: Any = {"size": size, "counts": [size[0] * size[1]]}
    return _as_text(coco.frPyObjects(empty, *size))


def decode_mask(run_lengths: RunLengths) -> Bool[np.ndarray, "h w"]:
    """Return the mask of run lengths."""
    return np.ascontiguousarray(coco.decode(run_lengths)).view(bool)  # type: ignore[arg-type]


def count_pixels(run_lengths: RunLengths) -> int:
    """Return the number of pixels of a mask."""
    return int(coco.area(run_lengths))  # type: ignore[arg-type]


def merge_masks(masks: Sequence[RunLengths]) -> RunLengths:
    """Return the union of masks."""
    return _as_text(coco.merge(list(masks)))  # type: ignore[arg-type]


def stack_masks(masks: Sequence[RunLengths], size: tuple[int, int]) -> UInt16[np.ndarray, "h w"]:
    """Return a map of `size` (height, width) of masks that may overlap: i where the i-th (from 1) is the smallest."""
    label_map, areas = np.zeros(size, np.uint16), [count_pixels(mask) for mask in masks]
    for index in sorted(range(len(masks)), key=lambda index: -areas[index]):
        if areas[index]:
            label_map[decode_mask(masks[index])] = index + 1
    return label_map


def _as_text(encoded: Any) -> RunLengths:
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


@dataclass(frozen=True, eq=False)
class Region:
    """A connected region of a label; two objects that touch are one region.

    Attributes:
        label: its label.
        polygon: outline and holes, see `fusioner.polygons`.
        size: height and width of the image, px.
        score: mean probability of the label over the region, 0..1.
    """

    label: str
    polygon: Polygon
    size: tuple[int, int]
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounding box (x, y, width, height) in pixels."""
        (x, y), (right, bottom) = self.polygon[0].min(axis=0).tolist(), self.polygon[0].max(axis=0).tolist()
        return x, y, right - x, bottom - y

    @cached_property
    def pixels(self) -> int:
        """Number of pixels."""
        return count_pixels(self.run_lengths)

    @cached_property
    def run_lengths(self) -> RunLengths:
        """Run lengths of the region's mask."""
        return _fill(self.polygon, (0, 0), self.size)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        """The region's mask."""
        return decode_mask(self.run_lengths)


def find_regions(
    label: str,
    mask: Bool[np.ndarray, "h w"],
    probability: Float[np.ndarray, "h w"],
    box: tuple[int, int, int, int],
) -> list[Region]:
    """Return the 4-connected regions of a label's mask, the largest first.

    Regions below `MIN_REGION` of the image are left out, except the largest of the label.

    Args:
        label: the label.
        mask: its mask.
        probability: its probability at every pixel, 0..1.
        box: bounding box of the mask (x, y, width, height) in pixels.
    """
    found = []
    for polygon in trace_box(mask, box):
        x, y, width, height = Region(label, polygon, mask.shape, 0.0).box
        inside = decode_mask(_fill(polygon, (x, y), (height, width)))
        score = probability[y : y + height, x : x + width][inside].mean(dtype=np.float64)
        found.append(Region(label, polygon, mask.shape, float(score)))
    found.sort(key=lambda region: -region.pixels)
    return [region for region in found if region is found[0] or region.pixels >= MIN_REGION * mask.size]


def trace_box(mask: Bool[np.ndarray, "h w"], box: tuple[int, int, int, int]) -> list[Polygon]:
    """Return `trace_polygons` of a mask, all of which lies in the box (x, y, width, height)."""
    x, y, width, height = box
    return [
        [ring + np.array([x, y]) for ring in polygon] for polygon in trace_polygons(mask[y : y + height, x : x + width])
    ]


def _fill(polygon: Polygon, origin: tuple[int, int], size: tuple[int, int]) -> RunLengths:
    """Return the run lengths of a polygon in a frame of `size` (height, width) at `origin` (x, y)."""
    ring: Any = [(join_holes(polygon) - origin).ravel().tolist()]
    return _as_text(coco.frPyObjects(ring, *size)[0])
