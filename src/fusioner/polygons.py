"""Masks as polygons along the edges of their pixels, so that filling them gives back the very same mask.

Coordinates are (x, y) in pixels from the image's top left corner, so its first pixel is the square from (0, 0) to
(1, 1). Rings are open: the first vertex is not repeated. Seen on the screen, outlines run clockwise and holes the
other way round. Regions that touch at a corner only are apart and no ring visits a corner twice, so that every polygon
is valid in the sense of OGC's Simple Features.
"""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int

Ring: TypeAlias = Int[np.ndarray, "n 2"]
Polygon: TypeAlias = list[Ring]
"""The outline, then the holes."""


def trace(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """One polygon for every 4-connected region, in the order of their topmost corners."""
    pixels = np.pad(mask, 1)  # pixels[y + 1, x + 1] lies right below the corner (x, y)
    corners, columns = _corners(pixels)
    rings = sorted(_rings(pixels, corners, columns), key=min)
    ring_of = np.zeros(len(corners), np.int64)  # a corner owns the edge that leaves it
    for index, ring in enumerate(rings):
        ring_of[ring] = index
    upper, lower = columns[::2], columns[1::2]  # the ends of every vertical edge
    places = corners[upper] @ (len(pixels), 1)  # rising, for binary search
    polygons: dict[int, Polygon] = {}
    region: list[int] = []
    for index, ring in enumerate(rings):
        x, y = corners[min(ring)]
        if pixels[y + 1, x + 1]:  # mask below the topmost corner: an outline
            region.append(index)
            polygons[index] = [corners[ring]]
        else:  # a hole; the edge where the row of mask above it begins belongs to the same region, and runs upwards
            start = x - pixels[y, x + 1 :: -1].argmin() + 1
            edge = np.searchsorted(places, start * len(pixels) + y - 1, side="right") - 1
            region.append(region[ring_of[lower[edge]]])
            polygons[region[index]].append(corners[ring])
    return list(polygons.values())


def joined(polygon: Polygon) -> Ring:
    """Outline and holes as one ring, for formats without holes: each hole hangs on a bridge walked there and back.

    Filled by the even-odd rule it is the same mask.
    """
    ring, *holes = polygon
    for hole in holes:
        near = int(np.abs(ring - hole[0]).sum(axis=1).argmin())
        ring = np.concatenate([ring[: near + 1], hole, hole[:1], ring[near:]])
    return ring


def _corners(pixels: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Where outlines turn, (x, y) row by row, and their indices column by column.

    Where two pixels touch diagonally there are two corners. In either order corners 2i and 2i + 1 are the ends of one
    edge, because along a row, and down a column, edges begin and end in turn.
    """
    left, above = pixels[1:, :-1] ^ pixels[:-1, :-1], pixels[:-1, 1:] ^ pixels[:-1, :-1]  # is there an edge?
    right = pixels[1:, 1:] ^ pixels[:-1, 1:]
    double = left & above & right & (pixels[1:, 1:] ^ pixels[1:, :-1])
    y, x = np.nonzero((left ^ right) | double)
    twice = double[y, x]
    corners = np.repeat(np.column_stack([x, y]), 1 + twice, axis=0)
    # The first of two has the edge to the left. It has the one above too where pixels touch like a backslash.
    rank = np.zeros(len(corners), np.int8)
    second = np.flatnonzero(np.repeat(twice, 1 + twice))[1::2]
    backslash = pixels[corners[second, 1], corners[second, 0]]
    rank[second], rank[second - 1] = backslash, ~backslash
    return corners, np.lexsort((rank, corners[:, 1], corners[:, 0]))


def _rings(
    pixels: Bool[np.ndarray, "h w"], corners: Int[np.ndarray, "n 2"], columns: Int[np.ndarray, " n"]
) -> Iterator[list[int]]:
    """Indices of the corners of every ring, in order, with the mask on the right-hand side."""
    across = np.empty(len(columns), np.int64)  # the other end of a corner's vertical edge
    across[columns[::2]], across[columns[1::2]] = columns[1::2], columns[::2]
    down, below = across.tolist(), pixels[corners[:, 1] + 1, corners[:, 0] + 1].tolist()
    same = (corners @ (len(pixels), 1)).tolist()
    seen = bytearray(len(down))
    for start in range(len(down)):
        if seen[start]:
            continue
        ring, here = [], start
        while not seen[here]:  # outlines set out to the right, holes downwards
            there = here ^ 1 if below[start] else down[here]
            seen[here] = seen[there] = 1
            ring += (here, there)
            here = down[there] if below[start] else there ^ 1
        yield from _cut(ring, same)


def _cut(ring: list[int], same: list[int]) -> Iterator[list[int]]:
    """Part a ring at the corners that it visits twice; `same` is one number for both of two corners in one place."""
    if len({same[corner] for corner in ring}) == len(ring):
        yield ring
        return
    path: list[int] = []
    place: dict[int, int] = {}
    for corner in ring:
        first = place.setdefault(same[corner], len(path))
        if first < len(path):
            yield path[first:]
            for gone in path[first + 1 :]:
                del place[same[gone]]
            del path[first:]
        path.append(corner)
    yield path
