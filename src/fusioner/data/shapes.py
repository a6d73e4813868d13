"""Shapes of annotation files as boolean masks of the image's size (height, width).

Coordinates are in pixels, (0, 0) is the outer corner of the first pixel. Polygons are filled as by pycocotools; of the
other shapes, the pixels whose centre lies inside. Numbers may be given as strings. Every function raises a ValueError
or TypeError for numbers that make no shape.
"""

import base64
import io
import math
import zlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

Size = tuple[int, int]
Mask = Bool[np.ndarray, "h w"]
Drawers = dict[str, Callable[[Any, Size], Mask]]
"""Kind of a shape -> function that draws its content."""
MALFORMED = (
    AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, OSError, MemoryError, zlib.error,
    ElementTree.ParseError, Image.DecompressionBombError,
)  # fmt: skip
"""Errors of malformed annotations."""


def fill_polygons(polygons: Sequence[object], size: Size) -> Mask:
    """Fill the union of polygons, each [x1, y1, x2, y2, ...] or [[x1, y1], [x2, y2], ...]."""
    flat = [_points(polygon, size).ravel().tolist() for polygon in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *size))).astype(bool)


def fill_outline(exterior: object, holes: Sequence[object], size: Size) -> Mask:
    """Fill a polygon including its outline, without its holes and theirs (as Supervisely does)."""
    canvas = Image.new("1", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for points, value in ((exterior, 1), *((hole, 0) for hole in holes)):
        draw.polygon([tuple(point) for point in _points(points, size).tolist()], fill=value, outline=value)
    return np.array(canvas)


def fill_box(corners: Sequence[Any], size: Size, rotation: Any = 0, pivot: tuple[float, float] | None = None) -> Mask:
    """Fill the box (left, top, right, bottom), rotated clockwise by degrees around `pivot` (default: its centre)."""
    left, top, right, bottom = _finite(corners)
    x, y = _pixel_centres(size, rotation, pivot or ((left + right) / 2, (top + bottom) / 2))
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def fill_ellipse(centre: Sequence[Any], radii: Sequence[Any], size: Size, rotation: Any = 0) -> Mask:
    """Fill an ellipse, rotated clockwise by degrees around its centre."""
    x0, y0, rx, ry = _finite([*centre, *radii])
    x, y = _pixel_centres(size, rotation, (x0, y0))
    if rx <= 0 or ry <= 0:
        return np.zeros(size, bool)
    with np.errstate(over="ignore"):  # far outside of a tiny ellipse
        return ((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2 <= 1


def fill_runs(counts: str | bytes | Sequence[object], size: Size, column_major: bool) -> Mask:
    """Expand run lengths, which start with background; a string is in COCO's compressed form."""
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts.encode() if isinstance(counts, str) else counts)
    else:
        runs = [int(count) for count in counts]  # pyright: ignore[reportArgumentType]
    if any(count < 0 for count in runs) or sum(runs) != size[0] * size[1]:
        raise ValueError(f"run lengths that do not add up to {size[1]} x {size[0]} pixels")
    bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return bits.reshape(size, order="F" if column_major else "C")


def fill_brush(packed: bytes, size: Size) -> Mask:
    """Expand Label Studio's run lengths of RGBA values (the rle-pack format); painted pixels are opaque."""
    bits, at = np.unpackbits(np.frombuffer(packed, np.uint8)), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("brush strokes that are cut short")
        return int("".join(map(str, bits[at - count : at])), 2)

    total, word_size, run_sizes = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"brush strokes on another size than {size[1]} x {size[0]} pixels")
    values, done = np.empty(total, np.uint8), 0
    while done < total:
        is_run, count = read(1), read(run_sizes[read(2)]) + 1
        end = min(done + count, total)
        values[done:end] = read(word_size) if is_run else [read(word_size) for _ in range(end - done)]
        done = end
    return values.reshape(*size, 4)[..., 3] > 0


def paste(bits: Bool[np.ndarray, "_ _"], x: Any, y: Any, size: Size) -> Mask:
    """Place a small mask with its corner at the rounded (x, y) of an empty one, cutting off what is outside."""
    left, top = map(round, _finite([x, y]))
    whole = np.zeros(size, bool)
    target = whole[max(top, 0) : max(top + bits.shape[0], 0), max(left, 0) : max(left + bits.shape[1], 0)]
    target[:] = bits[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return whole


def read_bitmap(raw: bytes) -> Mask:
    """Decode an image file whose object is opaque (if it has transparency) or bright."""
    with Image.open(io.BytesIO(raw)) as picture:
        rgba = np.asarray(picture.convert("RGBA"))
    return (rgba[..., 3] if rgba[..., 3].min() < 255 else rgba[..., 0]) > 0


def _points(values: object, size: Size) -> np.ndarray:
    """Return coordinates as (n, 2), checked to lie within ten times the image's size."""
    numbers = np.asarray(values, float).ravel()
    if len(numbers) % 2 or len(numbers) < 6:
        raise ValueError(f"a polygon of {len(numbers)} numbers instead of x and y of at least three points")
    points, limits = numbers.reshape(-1, 2), np.array([size[1], size[0]])
    if not (np.abs(points) <= 10 * limits).all():
        raise ValueError("a polygon with coordinates that are no numbers or far outside the image")
    return points


def _finite(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("coordinates that are no finite numbers")
    return numbers


def _pixel_centres(size: Size, rotation: Any, pivot: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates x, y of the pixel centres in the frame of a shape rotated around `pivot`."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    (degrees,) = _finite([rotation])
    if not degrees:
        return x, y
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = x - pivot[0], y - pivot[1]
    return pivot[0] + dx * cos + dy * sin, pivot[1] - dx * sin + dy * cos


def _decompress(text: bytes) -> list[int]:
    """Decode COCO's run lengths: signed base-32 digits, from the fourth on as differences to the last but one."""
    runs, value, shift = list[int](), 0, 0
    for byte in text:
        digit = byte - 48
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            value -= (1 << shift) if digit & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _draw_coco(segmentation: Any, size: Size) -> Mask:
    try:
        if isinstance(segmentation, list):
            return fill_polygons(segmentation, size)
        if tuple(segmentation.get("size", size)) != size:
            raise ValueError(f"it is {segmentation['size']} pixels large")
        return fill_runs(segmentation["counts"], size, column_major=True)
    except MALFORMED as error:
        raise ValueError(f"a segmentation that is no polygon and no run lengths of the image: {error}") from error


def _bounds(points: Any) -> list[float]:
    """Return the smallest x and y and the largest x and y."""
    array = np.array(points, float)
    return [*array.min(axis=0), *array.max(axis=0)]


def _percent(values: Sequence[Any], size: Size) -> list[float]:
    """Convert alternating x and y from per cent of the image to pixels."""
    return [float(value) / 100 * size[1 - i % 2] for i, value in enumerate(values)]


def _draw_studio_box(shape: dict[str, Any], size: Size) -> Mask:
    left, top, width, height = _percent(itemgetter("x", "y", "width", "height")(shape), size)
    return fill_box([left, top, left + width, top + height], size, shape.get("rotation") or 0, (left, top))


def _draw_studio_ellipse(shape: dict[str, Any], size: Size) -> Mask:
    numbers = _percent(itemgetter("x", "y", "radiusX", "radiusY")(shape), size)
    return fill_ellipse(numbers[:2], numbers[2:], size, shape.get("rotation") or 0)


def _draw_supervisely_box(shape: dict[str, Any], size: Size) -> Mask:
    (left, top), (right, bottom) = shape["points"]["exterior"]
    return fill_outline([left, top, right, top, right, bottom, left, bottom], shape["points"].get("interior", []), size)


DRAWERS: dict[str, Drawers] = {
    "coco": {"segmentation": _draw_coco},
    "labelme": {
        "polygon": lambda shape, size: fill_polygons([shape["points"]], size),
        "rotation": lambda shape, size: fill_polygons([shape["points"]], size),
        "rectangle": lambda shape, size: (
            fill_box(_bounds(shape["points"]), size)
            if len(shape["points"]) == 2
            else fill_polygons([shape["points"]], size)  # turned: four corners
        ),
        "circle": lambda shape, size: fill_ellipse(shape["points"][0], [math.dist(*shape["points"])] * 2, size),
        "mask": lambda shape, size: paste(
            read_bitmap(base64.b64decode(shape["mask"])), *_bounds(shape["points"])[:2], size=size
        ),
    },
    "cvat": {
        "polygon": lambda shape, size: fill_polygons([shape["points"].replace(";", ",").split(",")], size),
        "box": lambda shape, size: fill_box(
            itemgetter("xtl", "ytl", "xbr", "ybr")(shape), size, shape.get("rotation", 0)
        ),
        "ellipse": lambda shape, size: fill_ellipse(
            itemgetter("cx", "cy")(shape), itemgetter("rx", "ry")(shape), size, shape.get("rotation", 0)
        ),
        "mask": lambda shape, size: paste(
            fill_runs(shape["rle"].split(","), (int(shape["height"]), int(shape["width"])), column_major=False),
            *itemgetter("left", "top")(shape),
            size=size,
        ),
    },
    "supervisely": {
        "polygon": lambda shape, size: fill_outline(
            shape["points"]["exterior"], shape["points"].get("interior", []), size
        ),
        "rectangle": _draw_supervisely_box,
        "bitmap": lambda shape, size: paste(
            read_bitmap(zlib.decompress(base64.b64decode(shape["bitmap"]["data"]))),
            *shape["bitmap"]["origin"],
            size=size,
        ),
    },
    "label-studio": {
        "polygonlabels": lambda shape, size: fill_polygons([_percent(np.ravel(shape["points"]).tolist(), size)], size),
        "rectanglelabels": _draw_studio_box,
        "ellipselabels": _draw_studio_ellipse,
        "brushlabels": lambda shape, size: fill_brush(bytes(shape["rle"]), size),
    },
    "yolo": {"polygon": lambda points, size: fill_polygons([points.reshape(-1, 2) * [size[1], size[0]]], size)},
    "voc": {"polygon": fill_polygons},
}
"""Format of annotations -> kinds of shapes that have an area."""
