"""Output formats of a segmentation: pictures, masks, and the annotation files of other tools.

To add a format, write its function and list it in `FORMATS`. Annotation files hold the exact mask, polygons along pixel
edges; only those of LabelMe and YOLO are simplified to be edited. Labels without pixels have no annotation.
`docs/results.md` describes each format.
"""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.io import MARK
from fusioner.options import DEFAULT_OPTIONS, InferenceOptions
from fusioner.polygons import Polygon, join_holes, simplify
from fusioner.regions import Region, RunLengths, encode_empty, encode_mask
from fusioner.visualization import colours, hex_colour, png_mark

if TYPE_CHECKING:
    from fusioner.segmentation import Segmentation

OVERLAY_LEVEL = 1  # of zlib: a photograph takes a quarter of the time of the default and a quarter more bytes


class Segment:
    """A label, or with the option instances a region of it: the values that the formats write."""

    def __init__(self, result: "Segmentation", label: str, region: Region | None = None) -> None:
        self.result, self.label, self.id, self.region = result, label, result.number(label), region
        self.color, self.box = hex_colour(self.id), list(region.box if region else result.boxes[label])
        self.pixels = region.pixels if region else result.areas[label]
        self.coverage = round(self.pixels / result.label_map.size, 6)
        self.score = round(region.score if region else result.scores[label], 6)
        self.peak, self.outscored_by = round(result.peaks.get(label, self.score), 6), result.outscored.get(label)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.region.mask if self.region else self.result.mask(self.label)

    @property
    def polygons(self) -> list[Polygon]:
        return [self.region.polygon] if self.region else self.result.polygons(self.label)

    @property
    def rle(self) -> RunLengths:
        """COCO's compressed run-length encoding: {"size": [height, width], "counts": str}."""
        if self.region:
            return self.region.run_lengths
        if self.result.options.overlap:
            return self.result.run_lengths[self.label]
        return encode_mask(self.mask) if self.pixels else encode_empty(self.result.label_map.shape)


def segments(result: "Segmentation") -> list[Segment]:
    """Return all labels, in their order; with the option instances the regions of those that have some."""
    found = [Segment(result, region.label, region) for region in result.regions]
    labels = {segment.label for segment in found}
    found += [Segment(result, label) for label in result.labels if label not in labels]
    return sorted(found, key=lambda segment: segment.id)


def found_segments(result: "Segmentation") -> list[Segment]:
    """Return the labels that have pixels, or their regions, the largest label first."""
    order = list(result.found)
    return sorted((one for one in segments(result) if one.pixels), key=lambda one: order.index(one.label))


def describe(result: "Segmentation") -> dict[str, Any]:
    """Return everything about a result as JSON values.

    `rle` is COCO's compressed run-length encoding, `box` is [x, y, width, height], and the first ring of each of the
    `polygons` is the outline and the others are holes, see `fusioner.polygons`.
    """
    return {
        "image": result.name,
        "width": result.width,
        "height": result.height,
        "labels": list(result.labels),
        **result.options.to_dict(),
        "model": result.model,
        "notes": result.notes,
        "mask": {"bits": mask_bits(len(result.labels)), "values": "0 is background, i the i-th of labels"},
        "segments": [
            {
                "id": segment.id,
                "label": segment.label,
                "color": segment.color,
                "pixels": segment.pixels,
                "coverage": segment.coverage,
                "score": segment.score,
                "peak": segment.peak,
                "outscored_by": segment.outscored_by,
                "box": segment.box,
                "rle": segment.rle,
                "polygons": [[ring.tolist() for ring in polygon] for polygon in segment.polygons],
            }
            for segment in segments(result)
        ],
    }


def mask_bits(labels: int) -> int:
    """Return the bits per pixel of the mask file: 8 (palette) up to 255 labels, else 16 (grey)."""
    return 8 if labels <= 255 else 16


def _mask_image(result: "Segmentation") -> Image.Image:
    """Return the label map as a Pillow image; 8-bit maps have the overlay's colours as palette."""
    if mask_bits(len(result.labels)) == 16:
        return Image.fromarray(result.label_map.astype(np.uint16))
    image = Image.fromarray(result.label_map.astype(np.uint8))
    image.putpalette([value for colour in colours(len(result.labels) + 1) for value in colour])
    return image


def _write_masks(result: "Segmentation", file: BinaryIO) -> None:
    """ZIP archive of a grey PNG (0 or 255) per label, or per region of it: `1-cat.png`, `2-sofa.png`."""
    taken = Counter[int]()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = MARK
        for segment in found_segments(result):
            taken[segment.id] += 1
            part = f"-{taken[segment.id]}" if segment.region else ""
            name = re.sub(r"\W+", "_", segment.label)[:50]
            with archive.open(zipfile.ZipInfo(f"{segment.id}-{name}{part}.png"), "w") as entry:
                Image.fromarray(segment.mask).convert("L").save(entry, format="PNG")


def _coco(result: "Segmentation") -> dict[str, Any]:
    """COCO instances: one annotation per label or region, the label's number as category.

    `segmentation` is the run-length encoding. `polygons` is an addition for programs that read polygons only: one flat
    list [x1, y1, x2, y2, ...] per region, from which pycocotools makes the same mask.
    """
    return {
        "info": {"description": "made with Fusioner"},
        "images": [{"id": 1, "file_name": result.name, "width": result.width, "height": result.height}],
        "categories": [{"id": i, "name": label} for i, label in enumerate(result.labels, start=1)],
        "annotations": [
            {
                "id": place,
                "image_id": 1,
                "category_id": segment.id,
                "segmentation": segment.rle,
                "polygons": [join_holes(polygon).ravel().tolist() for polygon in segment.polygons],
                "bbox": segment.box,
                "area": segment.pixels,
                "iscrowd": 0,
                "score": segment.score,
            }
            for place, segment in enumerate(found_segments(result), start=1)
        ],
    }


def _labelme(result: "Segmentation") -> dict[str, Any]:
    """LabelMe: one simplified polygon per region; the image is not embedded but referred to by name."""
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": segment.label,
                "points": join_holes(polygon).tolist(),
                "group_id": None,
                "description": f"simplified by up to {distance:.1f} px",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for segment in found_segments(result)
            for polygon, distance in map(simplify, segment.polygons)
        ],
        "imagePath": result.name,
        "imageData": None,
        "imageHeight": result.height,
        "imageWidth": result.width,
    }


def _yolo(result: "Segmentation") -> str:
    """Ultralytics segmentation labels: one line per region, `class x1 y1 x2 y2 ...`; the first label is class 0.

    The polygons are simplified as for LabelMe.
    """
    size = np.array([result.width, result.height])
    lines = []
    for segment in found_segments(result):
        for polygon in segment.polygons:
            points = (f"{value:.9g}" for value in (join_holes(simplify(polygon)[0]) / size).ravel())
            lines.append(" ".join([str(segment.id - 1), *points]) + "\n")
    return "".join(lines)


def _cvat(result: "Segmentation") -> str:
    """CVAT for images 1.1: one mask per label or region, as row-major run lengths within its box."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task"), "labels")
    for number, name in enumerate(result.labels, start=1):
        label = ElementTree.SubElement(labels, "label")
        ElementTree.SubElement(label, "name").text = _xml_text(name)
        ElementTree.SubElement(label, "color").text = hex_colour(number)
        ElementTree.SubElement(label, "type").text = "mask"
    size = {"width": str(result.width), "height": str(result.height)}
    image = ElementTree.SubElement(root, "image", {"id": "0", "name": _xml_text(result.name), **size})
    for segment in found_segments(result):
        left, top, width, height = segment.box
        mask = segment.mask[top : top + height, left : left + width]
        changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=~mask[-1, -1]))
        attributes = {
            "label": _xml_text(segment.label),
            "source": "auto",
            "occluded": "0",
            "z_order": "0",
            "rle": ", ".join(map(str, np.diff(changes, prepend=0).tolist())),
            "left": str(left),
            "top": str(top),
            "width": str(width),
            "height": str(height),
        }
        ElementTree.SubElement(image, "mask", attributes)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, "unicode") + "\n"


def _xml_text(text: str) -> str:
    """Replace the characters that XML 1.0 forbids."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _geojson(result: "Segmentation") -> dict[str, Any]:
    """One feature per label or region, a MultiPolygon with holes; coordinates are pixels, x to the right and y down."""
    features = []
    for place, segment in enumerate(found_segments(result), start=1):
        rings = [[[*ring.tolist(), ring[0].tolist()] for ring in polygon] for polygon in segment.polygons]
        properties = {
            "label": segment.label,
            "color": segment.color,
            "area": segment.pixels,
            "score": segment.score,
        }
        geometry = {"type": "MultiPolygon", "coordinates": rings}
        features.append({"type": "Feature", "id": place, "properties": properties, "geometry": geometry})
    return {"type": "FeatureCollection", "generator": "Fusioner", "features": features}


def _write_npz(result: "Segmentation", file: BinaryIO) -> None:
    """`label_map` (H, W) uint16, `probabilities` (K, H, W) float16 and `labels`; no pickle.

    With the option overlap also `masks` (K, H, W) bool. Probabilities are written a few labels at a time, to limit
    memory.
    """
    size = result.image.shape[:2]
    planes = (plane.astype(np.float16) for chunk in result.iter_probabilities() for plane in chunk)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.comment = MARK
        _write_array(archive, "label_map", np.uint16, size, iter([result.label_map]))
        _write_array(archive, "probabilities", np.float16, (len(result.labels), *size), planes)
        if result.options.overlap:
            masks = (result.mask(label) for label in result.labels)
            _write_array(archive, "masks", np.bool_, (len(result.labels), *size), masks)
        labels = np.array(result.labels)
        _write_array(archive, "labels", labels.dtype, labels.shape, iter([labels]))


def _write_array(archive: zipfile.ZipFile, name: str, dtype: Any, shape: tuple, parts: Iterator[np.ndarray]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for part in parts:
            entry.write(np.ascontiguousarray(part).data)


def _png(draw: Callable[["Segmentation"], Image.Image], level: int = 6) -> Callable[["Segmentation", BinaryIO], None]:
    return lambda result, file: draw(result).save(file, format="PNG", compress_level=level, pnginfo=png_mark())


def _text(convert: Callable[["Segmentation"], str]) -> Callable[["Segmentation", BinaryIO], None]:
    """Make a writer of UTF-8 text; characters of a file name that are not valid text become "?"."""

    def write(result: "Segmentation", file: BinaryIO) -> None:
        file.write(convert(result).encode("utf-8", "replace"))

    return write


def _json(convert: Callable[["Segmentation"], dict[str, Any]]) -> Callable[["Segmentation", BinaryIO], None]:
    return _text(lambda result: json.dumps(convert(result), ensure_ascii=False))


@dataclass(frozen=True)
class Format:
    """An output format.

    Attributes:
        suffix: of the file name, after the stem.
        media_type: of HTTP responses.
        write: writes a segmentation to an open binary file.
        description: for menus and help.
        mark: part of each file, which distinguishes an earlier result from the file of another program.
    """

    suffix: str
    media_type: str
    write: Callable[["Segmentation", BinaryIO], None]
    description: str
    mark: bytes = MARK


FORMATS: dict[str, Format] = {
    "overlay": Format(
        ".overlay.png",
        "image/png",
        _png(lambda result: result.overlay(), OVERLAY_LEVEL),
        "image with coloured masks and a legend",
    ),
    "mask": Format(".png", "image/png", _png(_mask_image), "indexed mask: 0 background, i the i-th label"),
    "binary": Format(
        ".masks.zip", "application/zip", _write_masks, "a black and white PNG per label, in a ZIP archive"
    ),
    "json": Format(
        ".json", "application/json", _json(describe), "all values of the result, as JSON", b'"guided_filter"'
    ),
    "coco": Format(".coco.json", "application/json", _json(_coco), "COCO, run lengths and polygons"),
    "labelme": Format(".labelme.json", "application/json", _json(_labelme), "LabelMe polygons", b""),
    "yolo": Format(".yolo.txt", "text/plain", _text(_yolo), "YOLO (Ultralytics) polygons", b""),
    "cvat": Format(".cvat.xml", "application/xml", _text(_cvat), "CVAT for images 1.1, masks", b""),
    "geojson": Format(".geojson", "application/geo+json", _json(_geojson), "GeoJSON polygons, in pixels"),
    "npz": Format(".npz", "application/octet-stream", _write_npz, "NumPy: map, probabilities, labels"),
}
"""Name -> output format, for `Segmentation.save` and `to_bytes`."""


def default_formats(options: InferenceOptions) -> tuple[str, ...]:
    """Return the formats that are written where none is named."""
    return "overlay", "binary" if options.overlap else "mask", "json"


def split_formats(text: str) -> tuple[str, ...]:
    """Split names of formats at commas; each is returned once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def get_format(name: str, options: InferenceOptions = DEFAULT_OPTIONS) -> Format:
    """Return a format by name; FusionerError if it is unknown or cannot hold results of these options."""
    if name == "mask" and options.overlap:
        raise FusionerError("the format mask holds one label per pixel: choose binary for overlapping masks")
    if name not in FORMATS:
        raise FusionerError(f"there is no format '{name}': choose from {', '.join(FORMATS)}")
    return FORMATS[name]
