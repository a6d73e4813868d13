"""Masks as polygons along pixel edges: filling them reproduces the mask exactly.

Coordinates are (x, y) in pixels from the image's top left corner; the first pixel is the square from (0, 0) to (1, 1).
Rings are open: the first vertex is not repeated. On screen, outlines run clockwise and holes counterclockwise. Regions
that touch only at a corner are separate and no ring visits a corner twice, so all polygons are valid OGC Simple
Features.
"""

import heapq
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int

Ring: TypeAlias = Int[np.ndarray, "_ 2"]
Polygon: TypeAlias = list[Ring]
"""The outline, then its holes."""


def trace_polygons(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """Return one polygon per 4-connected region, ordered by topmost corner."""
    pixels = np.pad(mask, 1)  # pixels[y + 1, x + 1] is right below the corner (x, y)
    corners, columns = _corners(pixels)
    rings = sorted(_rings(pixels, corners, columns), key=min)
    ring_of = np.zeros(len(corners), np.int64)  # of the edge that leaves each corner
    for index, ring in enumerate(rings):
        ring_of[ring] = index
    upper, lower = columns[::2], columns[1::2]  # the ends of every vertical edge
    positions = corners[upper] @ (len(pixels), 1)  # ascending, for binary search
    polygons: dict[int, Polygon] = {}
    region: list[int] = []
    for index, ring in enumerate(rings):
        x, y = corners[min(ring)]
        if pixels[y + 1, x + 1]:  # mask below the topmost corner: an outline
            region.append(index)
            polygons[index] = [corners[ring]]
        else:  # a hole: the left edge of the run of mask pixels above it belongs to the same region and runs upwards
            start = x - pixels[y, x + 1 :: -1].argmin() + 1
            edge = np.searchsorted(positions, start * len(pixels) + y - 1, side="right") - 1
            region.append(region[ring_of[lower[edge]]])
            polygons[region[index]].append(corners[ring])
    return list(polygons.values())


def join_holes(polygon: Polygon) -> Ring:
    """Join outline and holes into one ring, for formats without holes, by a bridge to each hole and back.

    Filled by the even-odd rule the ring gives the same mask.
    """
    ring, *holes = polygon
    for hole in holes:
        nearest = int(np.abs(ring - hole[0]).sum(axis=1).argmin())
        ring = np.concatenate([ring[: nearest + 1], hole, hole[:1], ring[nearest:]])
    return ring


def simplify(polygon: Polygon, tolerance: float = 1.0, max_points: int = 200) -> tuple[Polygon, float]:
    """Simplify by Douglas-Peucker until no vertex is further than `tolerance` (px) away, or `max_points` are left.

    Every ring keeps at least 3 points, so a polygon with many holes may have more. Rings may cross themselves.

    Returns:
        The polygon, and the largest distance of a removed vertex, px.
    """
    kept: list[set[int]] = []
    heap: list[tuple[float, int, int, int, int]] = []  # -distance of the furthest vertex, ring, start, end, vertex

    def push(index: int, start: int, end: int) -> None:
        if end - start < 2:
            return
        ring = polygon[index]
        a, points = ring[start], ring[start + 1 : end]
        line = ring[end % len(ring)] - a
        share = np.clip((points - a) @ line / max(1, line @ line), 0, 1)
        distances = np.hypot(*(points - a - share[:, None] * line).T)
        furthest = int(distances.argmax())
        heapq.heappush(heap, (-float(distances[furthest]), index, start, end, start + 1 + furthest))

    def split(entry: tuple[float, int, int, int, int]) -> None:
        _, index, start, end, vertex = entry
        kept[index].add(vertex)
        push(index, start, vertex)
        push(index, vertex, end)

    for index, ring in enumerate(polygon):
        kept.append({0})
        others, heap = heap, []
        push(index, 0, len(ring))
        split(heap.pop())  # the vertex furthest from the first
        split(heapq.heappop(heap))
        for entry in others:
            heapq.heappush(heap, entry)
    while heap and -heap[0][0] > tolerance and sum(map(len, kept)) < max_points:
        split(heapq.heappop(heap))
    rings = [ring[sorted(vertices)] for ring, vertices in zip(polygon, kept, strict=True)]
    return rings, -heap[0][0] if heap else 0.0


def _corners(pixels: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Return the vertices of all outlines, (x, y) in row order, and their indices in column order.

    Where two pixels touch diagonally there are two vertices. In either order vertices 2i and 2i + 1 are the ends of one
    edge, because along a row (or column) edges begin and end alternately.
    """
    left, above = pixels[1:, :-1] ^ pixels[:-1, :-1], pixels[:-1, 1:] ^ pixels[:-1, :-1]  # is there an edge?
    right = pixels[1:, 1:] ^ pixels[:-1, 1:]
    double = left & above & right & (pixels[1:, 1:] ^ pixels[1:, :-1])
    y, x = np.nonzero((left ^ right) | double)
    twice = double[y, x]
    corners = np.repeat(np.column_stack([x, y]), 1 + twice, axis=0)
    # The first of two has the left edge, and also the upper edge if the pixels touch like a backslash.
    rank = np.zeros(len(corners), np.int8)
    second = np.flatnonzero(np.repeat(twice, 1 + twice))[1::2]
    backslash = pixels[corners[second, 1], corners[second, 0]]
    rank[second], rank[second - 1] = backslash, ~backslash
    return corners, np.lexsort((rank, corners[:, 1], corners[:, 0]))


def _rings(
    pixels: Bool[np.ndarray, "h w"], corners: Int[np.ndarray, "n 2"], columns: Int[np.ndarray, " n"]
) -> Iterator[list[int]]:
    """Yield the corner indices of every ring, in order, with the mask on the right-hand side."""
    across = np.empty(len(columns), np.int64)  # the other end of a corner's vertical edge
    across[columns[::2]], across[columns[1::2]] = columns[1::2], columns[::2]
    down, below = across.tolist(), pixels[corners[:, 1] + 1, corners[:, 0] + 1].tolist()
    position = (corners @ (len(pixels), 1)).tolist()
    visited = bytearray(len(down))
    for start in range(len(down)):
        if visited[start]:
            continue
        ring, here = [], start
        while not visited[here]:  # outlines start to the right, holes downwards
            there = here ^ 1 if below[start] else down[here]
            visited[here] = visited[there] = 1
            ring += (here, there)
            here = down[there] if below[start] else there ^ 1
        yield from _split(ring, position)


def _split(ring: list[int], position: list[int]) -> Iterator[list[int]]:
    """Split a ring at positions that it visits twice; `position` maps a corner to its position."""
    if len({position[corner] for corner in ring}) == len(ring):
        yield ring
        return
    path: list[int] = []
    index_of: dict[int, int] = {}
    for corner in ring:
        first = index_of.setdefault(position[corner], len(path))
        if first < len(path):
            yield path[first:]
            for removed in path[first + 1 :]:
                del index_of[position[removed]]
            del path[first:]
        path.append(corner)
    yield path
