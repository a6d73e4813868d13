"""Making masks from annotation files: COCO's tree from its instances, and folders of one's own from other tools."""

import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from PIL import Image

from fusioner.data.annotation_formats import Annotated, Project
from fusioner.data.classes import read_class_names
from fusioner.data.coco import COCO_CLASSES
from fusioner.data.coco_json import paint_instances, read_instances
from fusioner.data.paths import IMAGE_SUFFIXES
from fusioner.errors import FusionerError
from fusioner.image import read_image
from fusioner.io import atomic_write, cannot_write

Track = Callable[[Sequence[Any]], Iterable[Any]]


def prepare_coco(instances: Path, root: Path, track: Track = iter) -> tuple[int, int]:
    """Paint `annotation/PART/IMAGE.png` under `root` for every image of an instances file, PART being as train2014.

    Masks that are there already stay, so that a run that was stopped goes on; each file is whole or absent.

    Returns:
        Number of masks written, and of those that were there.

    Raises:
        FusionerError: no COCO file, a category that is none of the 80, no PART in the names, a full disk.
    """
    content = read_instances(instances)
    if unknown := set(content.categories.values()) - set(COCO_CLASSES[1:]):
        raise FusionerError(
            f"{instances} has categories that are none of COCO's 80: {', '.join(sorted(unknown)[:5])}; for classes of "
            "your own use `fusioner data prepare folder --from coco`"
        )
    values = {i: COCO_CLASSES.index(name) for i, name in content.categories.items()}
    written = 0
    for image in track(content.images):
        path = root / "annotation" / _part(image["file_name"], instances) / f"{Path(image['file_name']).stem}.png"
        if path.exists():
            continue
        write_mask(path, paint_instances(image, content.annotations.get(image["id"], []), values, ignore=255))
        written += 1
    return written, len(content.images) - written


def prepare_folder(project: Project, out: Path, copy: bool = False, track: Track = iter) -> None:
    """Write a project as a folder of one's own: `images` (links, or copies), `masks`, `classes.txt`.

    Images whose format the folder does not take are rewritten as PNG.

    Raises:
        FusionerError: nothing to write, `out` holds a set of other classes, an annotation that cannot be understood, an
            image that is unreadable or of another size than its annotation says.
    """
    if not project.images:
        raise FusionerError(f"there is no annotated image in {project.source}")
    names = ("background", *project.classes)
    _same_classes(out, names)
    ignore = 255 if len(names) <= 255 else 65535
    values = {name: i for i, name in enumerate(names)} | {None: ignore}
    stems = _stems(project.images)
    for item, stem in track(list(zip(project.images, stems, strict=True))):
        mask = np.zeros((item.height, item.width), np.uint8 if ignore == 255 else np.uint16)
        try:
            for name, region in item.regions():
                mask[region] = values[name]
        except (KeyError, IndexError, TypeError, ValueError, OSError, zlib.error) as error:
            raise FusionerError(f"the annotation of {item.name} cannot be understood: {error!r}") from error
        _place(item, out / "images" / stem, copy)
        write_mask(out / "masks" / f"{stem}.png", mask)
    with atomic_write(out / "classes.txt") as beside:
        beside.write_text("".join(f"{name}\n" for name in names), "utf-8")


def write_mask(path: Path, mask: Integer[np.ndarray, "h w"]) -> None:
    """An indexed (8-bit) or grey (16-bit) PNG."""
    with atomic_write(path) as beside:
        Image.fromarray(mask).save(beside)


def _part(file_name: str, instances: Path) -> str:
    """train2014 or val2014: as the image is called, else as the instances file is."""
    for name in (file_name, instances.stem):
        for part in ("train2014", "val2014"):
            if part in name:
                return part
    raise FusionerError(f"neither {file_name} nor {instances.name} says whether it belongs to train2014 or val2014")


def _stems(images: Sequence[Annotated]) -> list[str]:
    """Names in the folder: an image's own stem, or its whole path where two share the stem."""
    paths = [Path(item.name).with_suffix("") for item in images]
    count = Counter(path.name for path in paths)
    stems = [path.name if count[path.name] == 1 else "_".join(path.relative_to(path.anchor).parts) for path in paths]
    if twice := [stem for stem, times in Counter(stems).items() if times > 1]:
        raise FusionerError(f"two images are called {twice[0]!r}; give them different names")
    return stems


def _same_classes(out: Path, names: Sequence[str]) -> None:
    if (out / "classes.txt").is_file() and tuple(read_class_names(out).values()) != tuple(names):
        raise FusionerError(f"{out} holds a set of other classes: choose an empty folder")


def _place(item: Annotated, target: Path, copy: bool) -> None:
    """The image under its new name, whose ending is the file's own where the folder takes it."""
    rgb = read_image(item.image)
    if rgb.shape[:2] != (item.height, item.width):
        raise FusionerError(
            f"{item.image} is {rgb.shape[1]}x{rgb.shape[0]} pixels, "
            f"its annotation was made on {item.width}x{item.height}"
        )
    suffix = item.image.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        with atomic_write(target.with_name(f"{target.name}.png")) as beside:
            Image.fromarray(rgb).save(beside)
        return
    path = target.with_name(target.name + suffix)
    if copy:
        with atomic_write(path) as beside:
            shutil.copyfile(item.image, beside)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.unlink()
        path.symlink_to(item.image.resolve())
    except OSError as error:
        raise cannot_write(path, error) from error
