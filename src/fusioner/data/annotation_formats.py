"""Annotations of other tools in one form: classes, images, and the regions of each as masks, last on top.

Supported are COCO instances (JSON), LabelMe (a JSON an image), CVAT (for images 1.1: XML; Segmentation mask 1.1: colour
PNGs with labelmap.txt) and Supervisely (meta.json, DATASET/img, DATASET/ann). Polygons are filled as pycocotools does,
Supervisely's as its own program does: with their outline. Lines and points mark no area and are left out with a note.
"""

import base64
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from fusioner.data.coco_json import paint_instances, read_instances, read_json, region_mask
from fusioner.errors import FusionerError
from fusioner.image import image_suffixes, read_image

Region = tuple[str | None, Bool[np.ndarray, "h w"]]
"""A class name (None: ignored; "background") and its pixels."""
BACKGROUND = frozenset({"background", "_background_", "__background__", "bg"})
IGNORE = frozenset({"__ignore__", "ignore"})
_AREALESS = frozenset({"line", "linestrip", "point", "points", "polyline", "cuboid", "skeleton", "graph"})


@dataclass(frozen=True)
class Annotated:
    """One image: the name it goes by, its file, the size its annotation was made at, and its regions when asked for."""

    name: str
    image: Path
    height: int
    width: int
    regions: Callable[[], Iterator[Region]]


@dataclass
class Project:
    """An annotation project; `classes` without background, in the order of their ids."""

    source: Path
    classes: Sequence[str]
    images: list[Annotated]
    notes: list[str] = field(default_factory=list)


def coco(source: Path, images: Path | None = None) -> Project:
    """An instances file; its images lie beside it or in `images`."""
    content = read_instances(_only(source, "*.json"))
    folders = [images] if images else [content.path.parent, content.path.parent / "images"]
    classes = [name for name in content.categories.values() if name.casefold() not in BACKGROUND]
    numbers = {i: classes.index(name) + 1 if name in classes else 0 for i, name in content.categories.items()}

    def regions(entry: dict[str, Any]) -> Iterator[Region]:
        mask = paint_instances(entry, content.annotations.get(entry["id"], []), numbers, ignore=65535)
        for value in np.unique(mask[mask > 0]).tolist():
            yield (None if value == 65535 else classes[value - 1]), mask == value

    found = [
        Annotated(e["file_name"], _find(e["file_name"], folders), e["height"], e["width"], partial(regions, e))
        for e in content.images
    ]
    return Project(content.path, classes, found)


def labelme(source: Path, images: Path | None = None) -> Project:
    """A folder with a LabelMe JSON an image; the image is at the file's imagePath, or in `images`."""
    files = [path for path in sorted(source.rglob("*.json")) if not path.name.startswith(".")]
    found, seen, notes = list[Annotated](), Counter[str](), Counter[str]()
    for path in files:
        content = read_json(path)
        try:
            name, shapes = Path(content["imagePath"].replace("\\", "/")), content["shapes"]
            size = int(content["imageHeight"]), int(content["imageWidth"])
            seen.update(str(shape["label"]) for shape in shapes)
            notes.update(shape["shape_type"] for shape in shapes if shape["shape_type"] in _AREALESS)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FusionerError(f"{path} is no LabelMe file: {error!r}") from error
        image = _find(str(name), [images] if images else [path.parent], name.name)
        label = str((path.parent / name.name).relative_to(source))
        found.append(Annotated(label, image, *size, partial(_labelme_regions, path, shapes, size)))
    classes = sorted(name for name in seen if name.casefold() not in BACKGROUND | IGNORE)
    return Project(source, classes, found, _left_out(notes))


def cvat(source: Path, images: Path | None = None) -> Project:
    """`annotations.xml` of CVAT for images 1.1, or the folder of a Segmentation mask 1.1 export."""
    if (source / "labelmap.txt").is_file():
        return _cvat_masks(source, images)
    path = _only(source, "*.xml")
    try:
        root = ElementTree.parse(path).getroot()
        classes = [str(label.findtext("name")) for label in root.iterfind("meta//label")]
        entries = [(e.attrib["name"], int(e.attrib["height"]), int(e.attrib["width"]), e) for e in root.iter("image")]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise FusionerError(f"{path} is no CVAT for images 1.1 file: {error!r}") from error
    folders = [images] if images else [path.parent, path.parent / "images"]
    notes = Counter(shape.tag for *_, entry in entries for shape in entry if shape.tag in _AREALESS)
    found = [
        Annotated(name, _find(name, folders), height, width, partial(_cvat_regions, entry, (height, width)))
        for name, height, width, entry in entries
    ]
    named = dict.fromkeys([*classes, *(shape.get("label", "") for *_, entry in entries for shape in entry)])
    kept = [name for name in named if name and name.casefold() not in BACKGROUND | IGNORE]
    return Project(path, kept, found, _left_out(notes))


def supervisely(source: Path, images: Path | None = None) -> Project:
    """A project folder: `meta.json`, and in each data set `img/NAME` with `ann/NAME.json`."""
    meta = read_json(source / "meta.json")
    found, notes = list[Annotated](), Counter[str]()
    try:
        titles = [entry["title"] for entry in meta["classes"]]
        for path in sorted(source.glob("*/ann/*.json")):
            content, folder = read_json(path), path.parent.parent
            size = int(content["size"]["height"]), int(content["size"]["width"])
            objects = content["objects"]
            notes.update(entry["geometryType"] for entry in objects if entry["geometryType"] in _AREALESS)
            image = _find(path.stem, [images] if images else [folder / "img"])
            regions = partial(_supervisely_regions, path, objects, size)
            found.append(Annotated(f"{folder.name}/{path.stem}", image, *size, regions))
    except (KeyError, TypeError, ValueError) as error:
        raise FusionerError(f"{source} is no Supervisely project: {error!r}") from error
    classes = [title for title in titles if title.casefold() not in BACKGROUND | IGNORE]
    return Project(source, classes, found, _left_out(notes))


READERS: dict[str, Callable[[Path, Path | None], Project]] = {
    "coco": coco,
    "labelme": labelme,
    "cvat": cvat,
    "supervisely": supervisely,
}


def class_of(label: str) -> str | None:
    """A label as a region's class."""
    lower = label.casefold()
    return None if lower in IGNORE else "background" if lower in BACKGROUND else label


def _labelme_regions(path: Path, shapes: list[dict[str, Any]], size: tuple[int, int]) -> Iterator[Region]:
    for shape in shapes:
        kind, points = shape["shape_type"], np.array(shape["points"], float)
        if kind in _AREALESS:
            continue
        if kind == "polygon":
            region = region_mask([points.ravel().tolist()], *size, where=str(path))
        elif kind == "rectangle":
            region = _box([*points.min(axis=0), *points.max(axis=0)], size)
        elif kind == "circle":
            radius = float(np.hypot(*(points[1] - points[0])))
            region = _ellipse([*points[0], radius, radius], size)
        elif kind == "mask":
            left, top = points.min(axis=0).round().astype(int)
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                region = _paste(np.asarray(picture.convert("L")) > 0, left, top, size)
        else:
            raise FusionerError(f"{path} has a shape of a kind that LabelMe does not know: {kind!r}")
        yield class_of(str(shape["label"])), region


def _cvat_regions(entry: ElementTree.Element, size: tuple[int, int]) -> Iterator[Region]:
    for shape in sorted(entry, key=lambda one: int(one.get("z_order", "0"))):
        numbers = {k: float(v) for k, v in shape.attrib.items() if k not in ("label", "points", "rle", "source")}
        if shape.tag == "polygon":
            flat = [float(v) for v in shape.attrib["points"].replace(";", ",").split(",")]
            region = region_mask([flat], *size, where=entry.attrib["name"])
        elif shape.tag == "mask":
            left, top, width, height = (int(shape.attrib[k]) for k in ("left", "top", "width", "height"))
            runs = [int(v) for v in shape.attrib["rle"].split(",")]
            bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            region = _paste(bits.reshape(height, width), left, top, size)
        elif shape.tag == "box":
            region = _box([numbers[k] for k in ("xtl", "ytl", "xbr", "ybr")], size)
        elif shape.tag == "ellipse":
            region = _ellipse([numbers[k] for k in ("cx", "cy", "rx", "ry")], size)
        else:
            continue
        yield class_of(shape.attrib["label"]), region


def _cvat_masks(source: Path, images: Path | None) -> Project:
    """Colour PNGs under SegmentationClass, whose colours labelmap.txt names (`name:r,g,b::`)."""
    lines = [line.split(":") for line in (source / "labelmap.txt").read_text("utf-8").splitlines()]
    try:
        colours = {parts[0]: np.array(parts[1].split(","), int) for parts in lines if not parts[0].startswith("#")}
    except (IndexError, ValueError) as error:
        raise FusionerError(f"{source / 'labelmap.txt'} is no label map of CVAT: {error}") from error

    def regions(path: Path) -> Iterator[Region]:
        rgb = read_image(path)
        for name, colour in colours.items():
            yield class_of(name), (rgb == colour).all(axis=-1)

    found = []
    for path in sorted((source / "SegmentationClass").rglob("*.png")):
        name = path.relative_to(source / "SegmentationClass").with_suffix("")
        folder = images or source / "JPEGImages"
        image = next((folder / f"{name}{s}" for s in image_suffixes() if (folder / f"{name}{s}").is_file()), None)
        if image is None:
            raise FusionerError(f"mask {path} has no image in {folder}; --images names the folder of the images")
        height, width = read_image(path).shape[:2]
        found.append(Annotated(str(name) + image.suffix, image, height, width, partial(regions, path)))
    return Project(source, [name for name in colours if name.casefold() not in BACKGROUND | IGNORE], found)


def _supervisely_regions(path: Path, objects: list[dict[str, Any]], size: tuple[int, int]) -> Iterator[Region]:
    for entry in objects:
        kind = entry["geometryType"]
        if kind in _AREALESS:
            continue
        if kind == "bitmap":
            left, top = entry["bitmap"]["origin"]
            with Image.open(io.BytesIO(zlib.decompress(base64.b64decode(entry["bitmap"]["data"])))) as picture:
                bits = np.asarray(picture.convert("RGBA"))
            solid = bits[..., 3] if bits[..., 3].min() < 255 else bits[..., 0]  # transparent or black around the object
            region = _paste(solid > 0, left, top, size)
        elif kind in ("polygon", "rectangle"):
            outline = [tuple(point) for point in entry["points"]["exterior"]]
            canvas = Image.new("1", (size[1], size[0]))
            draw = ImageDraw.Draw(canvas)
            draw.rectangle(outline, fill=1) if kind == "rectangle" else draw.polygon(outline, fill=1, outline=1)
            for hole in entry["points"].get("interior", []):
                draw.polygon([tuple(point) for point in hole], fill=0, outline=0)
            region = np.asarray(canvas)
        else:
            raise FusionerError(f"{path} has an object of a kind that is not supported: {kind!r}")
        yield class_of(entry["classTitle"]), region


def _paste(bits: Bool[np.ndarray, "h w"], left: int, top: int, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    whole = np.zeros(size, bool)
    room = whole[max(top, 0) : top + bits.shape[0], max(left, 0) : left + bits.shape[1]]
    room[:] = bits[max(-top, 0) :, max(-left, 0) :][: room.shape[0], : room.shape[1]]
    return whole


def _box(sides: Sequence[float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    left, top, right, bottom = sides
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def _ellipse(centre_and_radii: Sequence[float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    x0, y0, rx, ry = centre_and_radii
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return ((x - x0) / rx) ** 2 + ((y - y0) / ry) ** 2 <= 1


def _only(source: Path, pattern: str) -> Path:
    """The file itself, or the only one of its kind in a folder."""
    if source.is_file():
        return source
    files = sorted(source.glob(pattern))
    if len(files) != 1:
        raise FusionerError(f"{source} holds {len(files)} files {pattern}: name the one to read")
    return files[0]


def _find(name: str, folders: Sequence[Path], *others: str) -> Path:
    """The image of that name (with or without its folders) in the first folder that has it."""
    names = (name, *others, Path(name).name)
    for folder in folders:
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    tried = " or ".join(str(folder) for folder in folders)
    raise FusionerError(f"image {name} is not in {tried}; --images names the folder of the images")


def _left_out(kinds: Counter[str]) -> list[str]:
    return [f"{count} shapes of kind {kind} mark no area and were left out" for kind, count in sorted(kinds.items())]
