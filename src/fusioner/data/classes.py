"""Class names: of the packaged data sets, and of a user's own set in classes.txt, classes.json or classes.yaml."""

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path

import yaml

from fusioner.errors import FusionerError
from fusioner.io import find_path, name_key, parse_file

UNLABELED_NAMES = frozenset({"null", "unlabeled", "unlabelled", "unknown", "ignore", "void"})
"""Names of classes (in any case) that mean "not annotated": their pixels are ignored."""
CLASS_FILES = ("classes.txt", "classes.json", "classes.yaml", "classes.yml")
MAX_ID = 65534
_PANOPTIC = ("-other-merged", "-merged", "-other", "-stuff")  # suffixes of COCO's class names that are no words
_SPELLED_OUT = {
    "diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor",
    "playingfield": "playing field", "window-blind": "window blind",
} | {
    f"{thing}-{of}": f"{of} {thing}" for thing in ("wall", "floor") for of in ("brick", "stone", "tile", "wood")
}  # fmt: skip
"""VOC's and COCO's spelling -> prompt."""


def read_names(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names and prompts of a packaged list in `names/`."""
    lines = (files("fusioner.data") / "names" / f"{name}.txt").read_text("utf-8").splitlines()
    return tuple(line.split("\t")[0] for line in lines), tuple(line.split("\t")[-1] for line in lines)


PASCAL_CLASSES, PASCAL_PROMPTS = read_names("pascal")
"""VOC's spelling; index = mask value, 255 in a mask = ignore."""
COCO_CLASSES = ("background", *read_names("stuff171")[0][:80])
"""The 80 thing classes in COCO's order; index = mask value."""
PASCAL_TO_COCO = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""COCO's names of PASCAL's classes where they differ."""


def read_class_names(root: Path) -> dict[int, str]:
    """Read the class names of a data set by mask value.

    `classes.txt` holds one name a line: line i (from 0) is value i, an empty line an unused value. JSON and YAML hold a
    list, {value: name} or {name: value}, at the top level or under `classes` or `names`. A name must be unique, and a
    value in 0..65534.
    """
    return read_names_file(_class_file(root))


def read_names_file(path: Path) -> dict[int, str]:
    """Read the class names of a text, JSON or YAML file; see `read_class_names`."""
    names = _by_value(_parse(path), path)
    if not any(names.values()):
        raise FusionerError(f"{path} names no class")
    if min(names) < 0 or max(names) > MAX_ID:
        raise FusionerError(f"{path} has a mask value outside 0..{MAX_ID}")
    seen: dict[str, int] = {}
    for value, name in names.items():
        if (first := seen.setdefault(name_key(name), value)) != value:
            raise FusionerError(f"{path} gives the name {name!r} to both {first} and {value}")
    return names


def read_class_colours(root: Path) -> dict[tuple[int, ...], int]:
    """Read the entry `colors` of classes.json or classes.yaml: (r, g, b) -> mask value; empty if there is none.

    It maps names or mask values to [r, g, b] or "#rrggbb".
    """
    path = _class_file(root)
    content = _parse(path)
    entries = content.get("colors") if isinstance(content, Mapping) else None
    if entries is None:
        return {}
    values = {name_key(name): value for value, name in read_names_file(path).items()}
    try:
        return {
            tuple(bytes.fromhex(colour.lstrip("#")) if isinstance(colour, str) else bytes(colour)): (
                values[name_key(str(name))] if name_key(str(name)) in values else int(name)
            )
            for name, colour in entries.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise FusionerError(f"`colors` of {path} must map class names to [r, g, b] or '#rrggbb': {error}") from error


def _class_file(root: Path) -> Path:
    path = next(filter(None, (find_path(name, root) for name in CLASS_FILES)), None)
    if path is None:
        raise FusionerError(f"{root} has no classes.txt, classes.json or classes.yaml with the names of the classes")
    return path


def prompt_of(name: str) -> str:
    """Return the prompt of a class: spaces for underscores, and the names of VOC and of COCO's panoptic masks in plain
    words ("dining table" for "diningtable", "sky" for "sky-other-merged", "brick wall" for "wall-brick").
    """
    for suffix in _PANOPTIC:
        name = name.removesuffix(suffix)
    return _SPELLED_OUT.get(name, name).replace("_", " ").strip()


def _parse(path: Path) -> object:
    parsers: dict[str, Callable[[str], object]] = {".txt": str.splitlines, ".json": json.loads}
    try:
        return parse_file(path, parsers.get(path.suffix, yaml.safe_load))
    except yaml.YAMLError as error:
        raise FusionerError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _by_value(content: object, path: Path) -> dict[int, str]:
    if isinstance(content, Mapping):
        for key in ("classes", "names"):
            if isinstance(content.get(key), (Mapping, list)):
                return _by_value(content[key], path)
        if content and all(_is_id(value) for value in content.values()):
            content = {int(value): name for name, value in content.items()}
        if all(_is_id(key) and isinstance(name, (str, type(None))) for key, name in content.items()):
            # an unquoted null in YAML or JSON is the name "null", as some data sets call their class 0
            return {int(key): "null" if name is None else name.strip() for key, name in content.items()}
    elif isinstance(content, list) and all(isinstance(name, (str, type(None))) for name in content):
        named = ["null" if name is None else name.strip() for name in content]
        return {i: name for i, name in enumerate(named) if name}
    raise FusionerError(f"{path} must hold a list of names, {{value: name}} or {{name: value}}")


def _is_id(value: object) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, str) and value.isdecimal()))
