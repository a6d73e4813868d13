"""Making masks from annotation files: the masks of COCO-20i, and folders of images and masks."""

import os
import secrets
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fusioner.data.annotation_formats import AnnotatedImage, AnnotationProject, coco, label_key
from fusioner.data.classes import CLASS_FILES, COCO_CLASSES, MAX_ID, read_class_names
from fusioner.data.masks import read_mask
from fusioner.data.paths import MASK_SUFFIXES
from fusioner.errors import FusionerError
from fusioner.image import image_size, image_suffixes, read_image
from fusioner.io import atomic_write, cannot_write
from fusioner.progress import Track, no_progress

_SOFTWARE = "fusioner data prepare"
"""Marks the PNG files written here: no other file is ever replaced."""


def prepare_coco(instances: Path, root: Path, track: Track = no_progress) -> tuple[int, int]:
    """Paint `annotation/PART/IMAGE.png` under `root` for every image of an instances file (PART: train2014, val2014).

    Existing masks are kept, so an interrupted run can be continued; a mask is written completely or not at all.
    Returns the number of masks written, and of those that existed.
    """
    project, written = coco(instances), 0
    if unknown := set(project.classes) - set(COCO_CLASSES[1:]):
        raise FusionerError(
            f"{instances} has categories that are none of COCO's 80: {', '.join(sorted(unknown)[:5])}; for classes of "
            "your own use `fusioner data prepare folder --from coco`"
        )
    project.classes = list(COCO_CLASSES[1:])
    for image in track(project.images, "painting"):
        names = (image.name, instances.stem)
        part = next((part for name in names for part in ("train2014", "val2014") if part in name), None)
        if part is None:
            raise FusionerError(f"neither {names[0]} nor {instances.name} says whether it is of train2014 or val2014")
        path = root / "annotation" / part / f"{PurePosixPath(image.name).stem}.png"
        if not path.exists():
            size = image.size or image_size(root / part / image.name)
            _write_png(path, project.paint(image, size, ignore=255))
            written += 1
    return written, len(project.images) - written


def prepare_folder(project: AnnotationProject, out: Path, copy: bool = False, track: Track = no_progress) -> None:
    """Write a project as a folder of `images` (links, or copies), `masks` and `classes.txt`.

    Images whose names have no suffix of a picture are converted to PNG. Only masks and images that were written by this
    function are replaced; all other files stay as they are.
    """
    if not project.images:
        raise FusionerError(f"there is no annotated image in {project.source}")
    names = ("background", *project.classes)
    if len(names) > MAX_ID + 1:
        raise FusionerError(f"{project.source} has {len(names) - 1} classes; a mask holds at most {MAX_ID}")
    has_classes = any((out / name).is_file() for name in CLASS_FILES)
    if has_classes and read_class_names(out) != dict(enumerate(names)):
        raise FusionerError(f"{out} holds a set of other classes: choose an empty folder")
    ignore = 255 if len(names) <= 255 else 65535
    images, masks = _files_by_name(out / "images", image_suffixes()), _files_by_name(out / "masks", MASK_SUFFIXES)
    for image, stem in track(list(zip(project.images, _stems(project.images), strict=True)), "converting"):
        rgb = read_image(image.path or image.content or b"", str(image.path or image.name))
        if image.size is not None and image.size != rgb.shape[:2]:
            raise FusionerError(
                f"{image.path or image.name} is {rgb.shape[1]}x{rgb.shape[0]} pixels, "
                f"its annotation was made on {image.size[1]}x{image.size[0]}"
            )
        mask = project.paint(image, rgb.shape[:2], ignore)
        if (other := masks.get(label_key(stem))) is not None and other.name != f"{stem}.png":
            raise FusionerError(f"{other} exists beside {stem}.png: choose an empty folder for --root")
        _place_image(image, rgb, out / "images" / stem, images.get(label_key(stem)), copy)
        _write_png(out / "masks" / f"{stem}.png", mask)
    if not has_classes:
        with atomic_write(out / "classes.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names), "utf-8")


def _files_by_name(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Files of a folder by stem, without regard to case and Unicode form."""
    return {label_key(path.stem): path for path in folder.glob("*") if path.suffix.lower() in suffixes}


def _stems(images: Sequence[AnnotatedImage]) -> list[str]:
    """Names in the folder: the stem of an image, or its whole path if others have the same stem in any case."""
    paths = [PurePosixPath(image.name.replace("\\", "/")).with_suffix("") for image in images]
    count = Counter(label_key(path.name) for path in paths)
    stems = [
        path.name if count[label_key(path.name)] == 1 else "_".join(path.relative_to(path.anchor).parts)
        for path in paths
    ]
    if duplicates := [stem for stem, times in Counter(map(label_key, stems)).items() if times > 1]:
        raise FusionerError(f"two images are called {duplicates[0]!r}; give them different names")
    return stems


def _place_image(
    image: AnnotatedImage, rgb: UInt8[np.ndarray, "h w 3"], stem: Path, existing: Path | None, copy: bool
) -> None:
    """Link, copy or convert an image to `stem` with its suffix, unless it is there; replace only links to it."""
    source, suffix = image.path, PurePosixPath(image.path.name if image.path else image.name).suffix.lower()
    takes_format = suffix in image_suffixes()
    target = stem.with_name(stem.name + (suffix if takes_format else ".png"))
    if existing is not None and existing.exists():
        linked = source is not None and existing.samefile(source)
        if not linked and not (existing.name == target.name and np.array_equal(read_image(existing), rgb)):
            raise FusionerError(f"{existing} exists and is another image: choose an empty folder for --root")
        if not (linked and copy and existing.is_symlink()):
            return
        target = existing
    if not takes_format:
        _write_png(target, rgb)
    elif source is None or copy:
        with atomic_write(target) as temporary:
            temporary.write_bytes(source.read_bytes() if source else image.content or b"")
    else:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".part-{secrets.token_hex(4)}")
            temporary.symlink_to(source.resolve())
            os.replace(temporary, target)
        except OSError as error:
            raise cannot_write(target, error) from error


def _write_png(path: Path, pixels: Integer[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an indexed (8-bit), grey (16-bit) or RGB file with the mark of this program; keep other files."""
    ours = False
    with suppress(OSError), Image.open(path) as picture:
        ours = picture.info.get("Software") == _SOFTWARE and not path.is_symlink()
    if path.exists() and not ours:
        if pixels.ndim == 2 and np.array_equal(read_mask(path), pixels):
            return
        raise FusionerError(f"{path} exists and was not written by this command: choose an empty folder for --root")
    mark = PngInfo()
    mark.add_text("Software", _SOFTWARE)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, pnginfo=mark)
