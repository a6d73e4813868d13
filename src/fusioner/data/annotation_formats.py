"""Annotations of other tools in one form: class names, and images with labelled shapes, the last on top.

There is one reader per format (`READERS`). Shapes without an area, such as lines and detection boxes, are left out and
counted.
"""

import base64
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np

from fusioner.data.classes import (
    CLASS_FILES,
    PASCAL_CLASSES,
    UNLABELED_NAMES,
    read_class_colours,
    read_class_names,
    read_names_file,
)
from fusioner.data.masks import Colour, read_mask
from fusioner.data.paths import find_file, read_lines
from fusioner.data.shapes import DRAWERS, MALFORMED, Drawers, Size
from fusioner.errors import FusionerError
from fusioner.image import image_suffixes
from fusioner.io import parse_file

_BACKGROUND = frozenset({"background", "_background_", "__background__", "bg"})
_IGNORE = frozenset({"__ignore__", *UNLABELED_NAMES})


class Shape(NamedTuple):
    """A labelled region; the drawers of the project take `content` by its kind."""

    label: str
    kind: str
    content: Any


@dataclass
class AnnotatedImage:
    """One image with its shapes in the order of painting."""

    name: str  # whose stem names the output files
    shapes: list[Shape]
    size: Size | None  # (height, width) that the annotation was made on; None: that of the image file
    files: Sequence[str]  # names of the image file to try, in these folders
    folders: Sequence[Path]
    content: bytes | None = None  # of the image file, if embedded in the annotation
    mask: Path | None = None  # file with the painted classes, in place of shapes
    path: Path | None = None  # of the image file, once found


@dataclass
class AnnotationProject:
    """The annotations of a source."""

    source: Path
    drawers: Drawers
    classes: list[str] = field(default_factory=list)  # in the order of their ids, without background
    images: list[AnnotatedImage] = field(default_factory=list)
    mask_names: dict[int, str] = field(default_factory=dict)  # of the values in mask files
    colours: dict[Colour, int] = field(default_factory=dict)  # of the values in mask files; empty: see `read_mask`
    small_on_top: bool = False  # small shapes over large ones, ignored ones below all others, whatever their order
    left_out: Counter[str] = field(default_factory=Counter)  # description of shapes or images not painted -> number
    merged: list[str] = field(default_factory=list)  # one sentence for each class name merged into another
    painted: int = 0  # shapes so far

    @property
    def notes(self) -> list[str]:
        """Notes on annotations that were left out or changed, one sentence per kind."""
        return [*self.merged, *(f"{count} {kind}" for kind, count in sorted(self.left_out.items()) if count)]

    def paint(self, image: AnnotatedImage, size: Size, ignore: int) -> np.ndarray:
        """Paint the mask of an image, (H, W) uint8 or uint16: 0 background, 1 ... classes, `ignore`."""
        values = {label_key(name): i for i, name in enumerate(self.classes, start=1)}
        values |= dict.fromkeys(_BACKGROUND, 0) | dict.fromkeys(_IGNORE, ignore)
        mask = np.zeros(size, np.uint8 if ignore == 255 else np.uint16)
        try:
            if image.mask is not None:
                self.painted += 1
                table = np.zeros(65536, mask.dtype)
                table[list(self.mask_names)] = [values[label_key(name)] for name in self.mask_names.values()]
                return table[self._read_mask(image.mask, size)]
            regions = ((values[label_key(s.label)], self.drawers[s.kind](s.content, size)) for s in image.shapes)
            if self.small_on_top:
                regions = sorted(regions, key=lambda region: (region[0] != ignore, -int(region[1].sum())))
            for value, region in regions:
                mask[region] = value
                self.painted += bool(region.any())
                self.left_out["shapes cover no pixel of their image"] += not region.any()
        except MALFORMED as error:
            raise FusionerError(f"the annotation of {image.name} cannot be understood: {error}") from error
        return mask

    def _read_mask(self, path: Path, size: Size) -> np.ndarray:
        values = read_mask(path, self.colours or None)
        if unknown := set(np.unique(values).tolist()) - set(self.mask_names):
            value = max(unknown)
            raise FusionerError(
                f"mask {path} holds value {value}, which is no class: add it to the class file, or read it as another "
                f"value by --mask-values {value}=1 or {value}=ignore"
            )
        if values.shape != size:
            raise ValueError(f"mask {path} is {values.shape[1]}x{values.shape[0]} pixels")
        return values

    def merge_names(self) -> None:
        """Add the names of all shapes to the classes, without background, in the form and order of a class file."""
        names: dict[str, str] = {}
        for label in dict.fromkeys([*self.classes, *(shape.label for image in self.images for shape in image.shapes)]):
            name = unicodedata.normalize("NFC", label).strip()
            if not name or len(name.splitlines()) > 1:
                raise FusionerError(f"{self.source} has a class called {label!r}: rename it to a name of one line")
            if label_key(name) in _BACKGROUND | _IGNORE:
                if label_key(name) in UNLABELED_NAMES - {"ignore"}:
                    self.merged.append(f"{name!r} is not a class: its pixels are ignored")
                continue
            if names.setdefault(label_key(name), name) != name:
                self.merged.append(f"class name {name!r} was merged into {names[label_key(name)]!r}")
        self.classes = list(names.values())


def read_annotations(
    source_format: str,
    source: Path,
    images: Path | None = None,
    skip_missing: bool = False,
    mask_values: Mapping[int, int | None] | None = None,
) -> AnnotationProject:
    """Read the annotations of a source in one of the formats of `READERS` and find their images.

    Args:
        images: folder of the images, instead of where the format has them.
        skip_missing: leave out images that are not found, instead of raising a FusionerError.
        mask_values: of mask files (formats voc and cvat): value -> the value to read it as, None for ignored.
    """
    if mask_values and not (source_format in ("cvat", "voc") and (source / "SegmentationClass").is_dir()):
        raise FusionerError(f"--mask-values applies to the masks of --from voc and cvat, but {source} holds none")
    project = voc(source, mask_values) if mask_values else READERS[source_format](source)
    for image in project.images:
        for kind in (shape.kind for shape in image.shapes if shape.kind not in project.drawers):
            project.left_out[f"shapes of kind {kind} mark no area or are not supported and were left out"] += 1
        image.shapes = [shape for shape in image.shapes if shape.kind in project.drawers]
        image.path = find_file(image.files, [images] if images else image.folders)
        if image.path is not None:
            image.name = str(Path(image.name.replace("\\", "/")).with_name(image.path.name))
    missing = [image for image in project.images if image.path is None and image.content is None]
    if missing and not skip_missing:
        folders = " or ".join(map(str, [images] if images else missing[0].folders))
        raise FusionerError(
            f"image {missing[0].files[0]} ({len(missing)} of {len(project.images)} images) is not in {folders}; "
            "--images names the folder of the images, --skip-missing leaves missing ones out"
        )
    if missing:
        project.left_out["images are missing and were left out"] = len(missing)
        project.images = [image for image in project.images if image.path or image.content]
    project.merge_names()
    return project


def label_key(label: str) -> str:
    """Return what equal labels have in common: case, Unicode form and spaces do not count."""
    return " ".join(unicodedata.normalize("NFC", label).split()).casefold()


@contextmanager
def _reading(message: str) -> Iterator[None]:
    """Turn the errors of malformed content into a FusionerError that begins with `message`."""
    try:
        yield
    except MALFORMED as error:
        raise FusionerError(f"{message}: {error if type(error) is ValueError else repr(error)}") from error


def coco(source: Path) -> AnnotationProject:
    """Read an instances file; its images are beside it or in `images`."""
    path = _only(source, "*.json")
    project, content = AnnotationProject(path, DRAWERS["coco"], small_on_top=True), parse_file(path, json.loads)
    with _reading(f"{path} is no COCO instances file, which has images, annotations and categories"):
        categories = {_id(entry["id"]): _label(entry["name"]) for entry in content["categories"]}
        categories = dict(sorted(categories.items(), key=lambda item: (isinstance(item[0], str), item[0])))
        if len(categories) < len(content["categories"]):
            raise ValueError("two categories have the same id")
        images: dict[int | str, AnnotatedImage] = {}
        for entry in content["images"]:
            name, folders = str(entry["file_name"]), [path.parent, path.parent / "images"]
            if _id(entry["id"]) in images:
                raise ValueError(f"two images have the id {entry['id']}")
            images[_id(entry["id"])] = AnnotatedImage(name, [], _size(entry), [name], folders)
        for entry in content["annotations"]:
            image, category, segmentation = _id(entry["image_id"]), _id(entry["category_id"]), entry.get("segmentation")
            if isinstance(segmentation, list) and all(map(_is_coco_box, segmentation)):
                segmentation = None
            if image not in images:
                project.left_out["regions belong to images that are not listed and were left out"] += 1
            elif category not in categories:
                raise ValueError(f"a region has the category {category}, which is not listed")
            elif not segmentation:
                project.left_out["regions have a box but no mask and were left out"] += 1
            else:
                crowd = _whole(entry.get("iscrowd")) not in (0, None)
                project.left_out["crowd regions are ignored"] += crowd
                label = "ignore" if crowd else categories[category]
                images[image].shapes.append(Shape(label, "segmentation", segmentation))
    project.classes, project.images = list(categories.values()), list(images.values())
    return project


def labelme(source: Path) -> AnnotationProject:
    """Read a folder with one LabelMe JSON per image; images are at the file's imagePath or embedded."""
    project = AnnotationProject(source, DRAWERS["labelme"])
    files = [source] if source.is_file() else source.rglob("*.json")
    source = source.parent if source.is_file() else source
    for path in sorted(path for path in files if not path.name.startswith(".")):
        content = parse_file(path, json.loads)
        with _reading(f"{path} is no LabelMe file"):
            file_name = str(content.get("imagePath") or f"{path.stem}.png").replace("\\", "/")
            shapes = [Shape(_label(s["label"]), str(s.get("shape_type") or "polygon"), s) for s in content["shapes"]]
            embedded = base64.b64decode(content["imageData"]) if content.get("imageData") else None
        name = str((path.parent / Path(file_name).name).relative_to(source))
        size = _size(content, "imageHeight", "imageWidth")
        project.images.append(AnnotatedImage(name, shapes, size, [file_name], [path.parent], embedded))
    project.classes = sorted({shape.label for image in project.images for shape in image.shapes})
    return project


def cvat(source: Path) -> AnnotationProject:
    """Read `annotations.xml` of CVAT for images 1.1, or the folder of a Segmentation mask 1.1 export."""
    if (source / "labelmap.txt").is_file():
        return voc(source)
    path = _only(source, "*.xml")
    project = AnnotationProject(path, DRAWERS["cvat"])
    with _reading(f"{path} is no CVAT for images 1.1 file"):
        root = ElementTree.parse(path).getroot()
        project.classes = [label.findtext("name") or "" for label in root.iterfind("meta//label")]
        for entry in root.iter("image"):
            elements = sorted(entry, key=lambda element: int(element.get("z_order", "0")))
            shapes = [Shape(_label(e.get("label")), e.tag, dict(e.attrib)) for e in elements]
            name, folders = entry.attrib["name"], [path.parent, path.parent / "images"]
            project.images.append(AnnotatedImage(name, shapes, _size(entry.attrib), [name], folders))
        if root.find("track") is not None:
            raise ValueError("it is one of CVAT for video, so export CVAT for images")
    return project


def supervisely(source: Path) -> AnnotationProject:
    """Read a project folder: `meta.json`, and in each data set `img/NAME` with `ann/NAME.json`."""
    project, meta = AnnotationProject(source, DRAWERS["supervisely"]), parse_file(source / "meta.json", json.loads)
    with _reading(f"{source} is no Supervisely project"):
        project.classes = [_label(entry["title"]) for entry in meta["classes"]]
        for path in sorted(source.glob("*/ann/*.json")):
            content, folder = parse_file(path, json.loads), path.parent.parent
            shapes = [Shape(_label(e["classTitle"]), str(e["geometryType"]), e) for e in content["objects"]]
            name, size = f"{folder.name}/{path.stem}", _size(content.get("size", {}))
            project.images.append(AnnotatedImage(name, shapes, size, [path.stem], [folder / "img"]))
    return project


def label_studio(source: Path) -> AnnotationProject:
    """Read a JSON export; images are beside it, in `images`, or at the path that the task names."""
    path = _only(source, "*.json")
    project, folders = AnnotationProject(path, DRAWERS["label-studio"]), [path.parent, path.parent / "images"]
    with _reading(f"{path} is no JSON export of Label Studio"):
        for task in parse_file(path, json.loads):
            urls = [value for value in task["data"].values() if isinstance(value, str)]
            is_image = [Path(url).suffix.lower() in image_suffixes() for url in urls]
            url = unquote(urls[is_image.index(True)] if any(is_image) else urls[0]).split("?d=")[-1]
            results = [r for a in task["annotations"] if not a.get("was_cancelled") for r in a["result"]]
            values = [(r["type"], r.get("value") or {}) for r in results]  # relations have none
            labelled = [(kind, value, list(value.get(kind) or ())) for kind, value in values]
            shapes = [Shape(_label(label), kind, value) for kind, value, labels in labelled for label in labels]
            unlabelled = sum(not labels for _, _, labels in labelled)
            project.left_out["regions have no label and were left out"] += unlabelled
            name = url.rsplit("/", 1)[-1]
            files = [url, name.partition("-")[2] or name]  # uploads are renamed to HASH-NAME
            size = _size(results[0] if results else {}, "original_height", "original_width")
            project.images.append(AnnotatedImage(name, shapes, size, files, folders))
    return project


def yolo(source: Path) -> AnnotationProject:
    """Read a YOLO segmentation folder: `data.yaml` (or classes.txt), `labels/NAME.txt` and `images/NAME`."""
    root = source.parent if source.is_file() else source
    configs = [source, *sorted(root.glob("*.y*ml")), root / "classes.txt", root / "labels" / "classes.txt"]
    config = next((path for path in configs if path.is_file()), None)
    if config is None:
        raise FusionerError(f"{root} has no data.yaml or classes.txt with the names of the classes")
    names = read_names_file(config)
    project = AnnotationProject(source, DRAWERS["yolo"], list(names.values()))
    for path in sorted(root.rglob("*.txt")):
        parts = [*path.relative_to(root).parts]
        parts[:-1] = ("labels" if part.casefold() == "labels" else part for part in parts[:-1])
        if "labels" not in parts[:-1] or path == config:
            continue
        shapes = []
        for line in read_lines(path):
            with _reading(f"{path} has a line that is no known class and polygon: {line[:40]!r}"):
                class_id, *numbers = line.split()
                kind = "polygon" if len(numbers) > 4 else "box"
                shapes.append(Shape(names[int(class_id)], kind, np.array(numbers, float)))
        name = str(Path(*parts))
        parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
        folders = [root.joinpath(*parts).parent, path.parent]
        project.images.append(AnnotatedImage(name, shapes, None, _with_suffixes(path.stem), folders))
    return project


def voc(source: Path, mask_values: Mapping[int, int | None] | None = None) -> AnnotationProject:
    """Read a PASCAL VOC folder: JPEGImages with masks in SegmentationClass or polygons in Annotations.

    Names and colours of the masks are those of `labelmap.txt` (`name:r,g,b::`) or of a class file in the folder, or
    else PASCAL VOC's. `mask_values`: value -> the value to read it as, None for ignored.
    """
    names, colours = _voc_classes(source)
    for value, other in (mask_values or {}).items():
        if other is not None and other not in names:
            raise FusionerError(f"mask value {value} cannot be read as {other}, which is no class of {source}")
        names[value] = "ignore" if other is None else names[other]
    project = AnnotationProject(source, DRAWERS["voc"], mask_names=names, colours=colours)
    folders = [source / "JPEGImages", source / "images", source]
    masks, entries = source / "SegmentationClass", source / "Annotations"
    files = {path.relative_to(entries).with_suffix(""): path for path in entries.rglob("*.xml")}
    files |= {path.relative_to(masks).with_suffix(""): path for path in masks.rglob("*.png")}
    for name, path in sorted(files.items()):
        image = AnnotatedImage(str(name), [], None, _with_suffixes(str(name)), folders)
        if path.suffix == ".png":
            image.mask = path
        else:
            with _reading(f"{path} is no annotation file of PASCAL VOC"):
                for entry in ElementTree.parse(path).iter("object"):
                    polygons = [[n.text for n in p.iter() if n.tag[0] in "xy"] for p in entry.iter("polygon")]
                    kind = "polygon" if polygons else "box"
                    image.shapes.append(Shape(entry.findtext("name") or "", kind, polygons))
        project.images.append(image)
    if any(image.mask for image in project.images):
        project.classes = [name for _, name in sorted(names.items())]
    return project


READERS: dict[str, Callable[[Path], AnnotationProject]] = {
    "coco": coco,
    "labelme": labelme,
    "cvat": cvat,
    "supervisely": supervisely,
    "label-studio": label_studio,
    "yolo": yolo,
    "voc": voc,
}


def _voc_classes(source: Path) -> tuple[dict[int, str], dict[Colour, int]]:
    """Names by value, and values by colour (none: see `read_mask`)."""
    path = source / "labelmap.txt"
    if not path.is_file() and any((source / name).is_file() for name in CLASS_FILES):
        return {255: "ignore"} | read_class_names(source), read_class_colours(source)
    if not path.is_file():
        return dict(enumerate(PASCAL_CLASSES)) | {255: "ignore"}, {}
    with _reading(f"{path} is no label map of CVAT"):
        entries = [line.split(":") for line in read_lines(path) if not line.startswith("#")]
        colours = {tuple(map(int, entry[1].split(","))): i for i, entry in enumerate(entries)}
    names = {65535: "background"} | {i: entry[0] for i, entry in enumerate(entries)}
    return names, {(0, 0, 0): 65535, **colours}


def _with_suffixes(stem: str) -> list[str]:
    return [stem + suffix for suffix in sorted(image_suffixes(), key=lambda suffix: (suffix != ".jpg", suffix))]


def _is_coco_box(ring: object) -> bool:
    """Whether a polygon has four numbers or fewer, and is none of [x, y] points."""
    return isinstance(ring, list) and len(ring) <= 4 and not (ring and isinstance(ring[0], list))


def _label(value: object) -> str:
    if not isinstance(value, (str, int)):
        raise ValueError(f"a class is called {value!r}")
    return str(value)


def _id(value: object) -> int | str:
    """Ids as one type: whole numbers, or text."""
    whole = _whole(value)
    return str(value) if whole is None else whole


def _whole(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _size(entry: Mapping[str, Any], height: str = "height", width: str = "width") -> Size | None:
    """(height, width) of an entry, None unless they are whole and positive."""
    sides = _whole(entry.get(height)), _whole(entry.get(width))
    return (sides[0], sides[1]) if sides[0] and sides[1] and min(sides[0], sides[1]) > 0 else None


def _only(source: Path, pattern: str) -> Path:
    """Return the file itself, or the only match in a folder."""
    if source.is_file():
        return source
    files = sorted(source.glob(pattern))
    if len(files) != 1:
        raise FusionerError(f"{source} holds {len(files)} files {pattern}: name the one to read")
    return files[0]
