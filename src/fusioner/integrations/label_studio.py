"""Label Studio's formats: read a labelling configuration, write predictions as brush masks and polygons."""

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from fusioner.errors import FusionerError
from fusioner.polygons import join_holes, simplify
from fusioner.regions import decode_mask

_CONTROLS = {"BrushLabels": "brushlabels", "PolygonLabels": "polygonlabels"}
_LONGEST_RUN = 2**16  # values


@dataclass(frozen=True)
class Control:
    """A control tag of a labelling configuration that takes masks.

    Attributes:
        name, to_name: of the tag and of its image tag.
        kind: "brushlabels" or "polygonlabels".
        key: of the image in a task's data.
        labels: label -> the value that results carry (its alias, if it has one).
    """

    name: str
    to_name: str
    kind: str
    key: str
    labels: dict[str, str]


def read_label_config(xml: str) -> list[Control]:
    """Return the brush and polygon controls of a labelling configuration.

    Raises:
        FusionerError: it is not XML, or no BrushLabels or PolygonLabels with labels belongs to an image.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise FusionerError(f"the labelling configuration is not XML: {error}") from error
    images = {tag.get("name"): tag.get("value", "").removeprefix("$") for tag in root.iter("Image")}
    controls = []
    for tag in root.iter():
        to_name = tag.get("toName", "")
        labels = {label.get("value", ""): label.get("alias") or label.get("value", "") for label in tag.iter("Label")}
        labels.pop("", None)
        if tag.tag in _CONTROLS and to_name in images and labels:
            controls.append(Control(tag.get("name", ""), to_name, _CONTROLS[tag.tag], images[to_name], labels))
    if not controls:
        raise FusionerError("the labelling configuration needs BrushLabels or PolygonLabels with labels for an Image")
    return controls


def regions(result: dict[str, Any], control: Control) -> list[dict[str, Any]]:
    """Return the regions of a prediction: one mask per label, or one simplified polygon per connected region.

    Args:
        result: a result as JSON values, see `fusioner.formats.describe`.
        control: whose labels were segmented.
    """
    width, height = result["width"], result["height"]
    found = []
    for place, segment in enumerate(result["segments"]):
        if not segment["pixels"]:
            continue
        if control.kind == "brushlabels":
            values = [{"format": "rle", "rle": encode_brush(decode_mask(segment["rle"]))}]
        else:
            polygons = ([np.array(ring) for ring in polygon] for polygon in segment["polygons"])
            rings = [join_holes(simplify(polygon)[0]) for polygon in polygons]
            values = [{"points": (ring * 100 / (width, height)).tolist(), "closed": True} for ring in rings]
        found += [
            {
                "id": f"{control.name}-{place}-{number}",
                "from_name": control.name,
                "to_name": control.to_name,
                "type": control.kind,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value | {control.kind: [control.labels[segment["label"]]]},
                "score": segment["score"],
            }
            for number, value in enumerate(values)
        ]
    return found


def encode_brush(mask: Bool[np.ndarray, "h w"]) -> list[int]:
    """Return the bytes of a mask in Label Studio's run-length encoding of RGBA images.

    A stream of bits: the number of values (32 bits), bits per value - 1 (5), the four possible sizes - 1 of run lengths
    (4 each); then runs: 1, index of the size (2), length - 1, value. Only runs of the fourth size are written.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat)) * 4
    bits = [f"{4 * len(flat):032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in (3, 4, 8, 16))]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        for start in range(0, length, _LONGEST_RUN):
            run = min(length - start, _LONGEST_RUN)
            bits.append(f"111{run - 1:016b}{255 * value:08b}")
    return np.packbits(np.frombuffer("".join(bits).encode("ascii"), np.uint8) - ord("0")).tolist()
