"""A segmentation as other tools' annotation files; `docs/results.md` says how each of them reads its own.

Polygons run along pixel edges. All files carry the mask without loss; readers of LabelMe and YOLO files paint a rim
of a pixel around it. Labels without a pixel have no annotation.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from fusioner.backend import ways
from fusioner.palette import hex_colour
from fusioner.polygons import joined
from fusioner.postprocess import chunks

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation


def write_text(text: str, file: BinaryIO) -> None:
    """In UTF-8; what is not valid text in a file's name becomes `?`."""
    file.write(text.encode("utf-8", "replace"))


def write_plain(values: Any, file: BinaryIO) -> None:
    """Plain values as JSON in UTF-8."""
    write_text(json.dumps(values, ensure_ascii=False), file)


def coco(result: "Segmentation") -> dict[str, Any]:
    """COCO's instances file: one annotation a label, its number as category.

    `segmentation` is the compressed run-length encoding. `polygons` is ours, and may stand in its place where a
    program knows polygons only: one flat list [x1, y1, x2, y2, ...] a region, from which pycocotools makes the same
    mask.
    """
    return {
        "info": {"description": "made with Fusioner"},
        "images": [{"id": 1, "file_name": result.name, "width": result.width, "height": result.height}],
        "categories": [{"id": i, "name": label} for i, label in enumerate(result.labels, start=1)],
        "annotations": [
            {
                "id": result.number(label),
                "image_id": 1,
                "category_id": result.number(label),
                "segmentation": run_lengths(result, label),
                "polygons": [joined(polygon).ravel().tolist() for polygon in result.polygons(label)],
                "bbox": list(result.boxes[label]),
                "area": result.areas[label],
                "iscrowd": 0,
                "score": round(result.scores[label], 6),
            }
            for label in result.found
        ],
    }


def run_lengths(result: "Segmentation", label: str) -> dict[str, Any]:
    """A label's mask as COCO's compressed run-length encoding: {"size": [height, width], "counts": str}."""
    from pycocotools import mask

    encoded: Any
    if result.areas[label]:
        encoded = mask.encode(np.asfortranarray(result.mask(label)).view(np.uint8))
    else:
        empty: Any = {"size": [result.height, result.width], "counts": [result.label_map.size]}
        encoded = mask.frPyObjects(empty, *empty["size"])
    return {"size": [result.height, result.width], "counts": encoded["counts"].decode("ascii")}


def labelme(result: "Segmentation") -> dict[str, Any]:
    """LabelMe's file: one polygon a region; the picture stays outside, in a file of its name beside it."""
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": label,
                "points": joined(polygon).tolist(),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for label in result.found
            for polygon in result.polygons(label)
        ],
        "imagePath": result.name,
        "imageData": None,
        "imageHeight": result.height,
        "imageWidth": result.width,
    }


def yolo(result: "Segmentation") -> str:
    """Ultralytics' segmentation labels: a line a region, `class x1 y1 x2 y2 ...`, the first label being class 0."""
    size = np.array([result.width, result.height])
    return "".join(
        " ".join([str(result.number(label) - 1), *(f"{value:.9g}" for value in (joined(polygon) / size).ravel())])
        + "\n"
        for label in result.found
        for polygon in result.polygons(label)
    )


def cvat(result: "Segmentation") -> str:
    """CVAT for images 1.1: one mask a label, as row-major run lengths within its box."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for number, name in enumerate(result.labels, start=1):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = _xml(name)
        ElementTree.SubElement(label, "color").text = hex_colour(number)
        ElementTree.SubElement(label, "type").text = "mask"
    size = {"width": str(result.width), "height": str(result.height)}
    image = ElementTree.SubElement(root, "image", {"id": "0", "name": _xml(result.name), **size})
    for name in result.found:
        left, top, width, height = result.boxes[name]
        inside = result.label_map[top : top + height, left : left + width] == result.number(name)
        changes = np.flatnonzero(np.diff(inside.ravel(), prepend=False, append=~inside[-1, -1]))
        place = {"left": str(left), "top": str(top), "width": str(width), "height": str(height)}
        fixed = {"source": "auto", "occluded": "0", "z_order": "0"}
        runs = ", ".join(map(str, np.diff(changes, prepend=0).tolist()))
        ElementTree.SubElement(image, "mask", {"label": _xml(name), **fixed, "rle": runs, **place})
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def geojson(result: "Segmentation") -> dict[str, Any]:
    """A feature a label, a MultiPolygon with holes; coordinates are pixels, x to the right and y down."""
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": result.number(label),
                "properties": {
                    "label": label,
                    "color": hex_colour(result.number(label)),
                    "area": result.areas[label],
                    "score": round(result.scores[label], 6),
                },
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [
                        [[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in result.polygons(label)
                    ],
                },
            }
            for label in result.found
        ],
    }


def write_npz(result: "Segmentation", file: BinaryIO) -> None:
    """`label_map` (H, W) uint16, `probabilities` (K, H, W) float16 and `labels`, for numpy.load; no pickle.

    The probabilities go to the file a few labels at a time: all of them would fill the memory.
    """
    size = result.image.shape[:2]
    planes = (ways(plane).half(plane) for some in chunks(result.logits, size) for plane in some)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        _write_array(archive, "label_map", np.uint16, size, iter([result.label_map]))
        _write_array(archive, "probabilities", np.float16, (len(result.labels), *size), planes)
        labels = np.array(result.labels)
        _write_array(archive, "labels", labels.dtype, labels.shape, iter([labels]))


def _write_array(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple, parts: Iterator[np.ndarray]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for part in parts:
            entry.write(np.ascontiguousarray(part).data)


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 forbids."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
