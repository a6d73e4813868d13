"""COCO's instances files: reading them, and their regions as masks."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from fusioner.errors import FusionerError


@dataclass(frozen=True)
class Instances:
    """An instances file.

    Attributes:
        path: the file.
        categories: names by id, ids ascending.
        images: the entries under `images`, each with file_name, height, width and id.
        annotations: entries under `annotations` by image id.
    """

    path: Path
    categories: dict[int, str]
    images: list[dict[str, Any]]
    annotations: dict[int, list[dict[str, Any]]]


def read_json(path: Path) -> Any:
    """The content of a JSON file; FusionerError when there is none."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise FusionerError(f"{path} cannot be read: {error}") from error


def read_instances(path: Path) -> Instances:
    """Read an instances file.

    Raises:
        FusionerError: unreadable, or not of COCO's form.
    """
    content = read_json(path)
    try:
        categories = {int(entry["id"]): str(entry["name"]).strip() for entry in content["categories"]}
        images = [{k: entry[k] for k in ("id", "file_name", "height", "width")} for entry in content["images"]]
        grouped: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for entry in content["annotations"]:
            grouped[entry["image_id"]].append(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise FusionerError(
            f"{path} is no COCO instances file, which has images, annotations and categories: {error!r}"
        ) from error
    return Instances(path, dict(sorted(categories.items())), images, dict(grouped))


def paint_instances(
    image: dict[str, Any], annotations: Iterable[dict[str, Any]], values: dict[int, int], ignore: int
) -> Integer[np.ndarray, "h w"]:
    """The mask of one image: small regions over large ones; crowd regions are `ignore` where nothing else is.

    Args:
        image: its entry; annotations: its regions; values: category id -> mask value.

    Raises:
        FusionerError: a category or a segmentation that cannot be understood.
    """
    mask = np.zeros((image["height"], image["width"]), np.uint8 if ignore == 255 else np.uint16)
    drawn = []
    for entry in annotations:
        if entry.get("category_id") not in values:
            raise FusionerError(f"{image['file_name']} has a region of category {entry.get('category_id')}, not named")
        region = region_mask(entry.get("segmentation"), *mask.shape, where=image["file_name"])
        crowd = bool(entry.get("iscrowd"))
        drawn.append((not crowd, -int(region.sum()), ignore if crowd else values[entry["category_id"]], region))
    for _, _, value, region in sorted(drawn, key=lambda one: one[:2]):
        mask[region] = value
    return mask


def region_mask(segmentation: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "h w"]:
    """Polygons [[x1, y1, ...], ...] or run lengths {"counts", "size"} as pycocotools fills them."""
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6]  # four numbers would be a box
            if not polygons:
                return np.zeros((height, width), bool)
            encoded = mask.merge(mask.frPyObjects(polygons, height, width))
        elif isinstance(segmentation["counts"], list):
            encoded = mask.frPyObjects(segmentation, height, width)
        else:
            encoded = segmentation
        decoded = mask.decode(encoded).astype(bool)
    except (KeyError, TypeError, ValueError) as error:
        raise FusionerError(f"{where} has a segmentation that is no polygon and no run lengths: {error}") from error
    if decoded.shape != (height, width):
        raise FusionerError(f"{where} is {width}x{height} pixels, a region of it {decoded.shape[1]}x{decoded.shape[0]}")
    return decoded
