"""The results of a batch run as a data set that Ultralytics trains on.

    OUT/images/train, OUT/images/val    JPEG files as they are; other formats as PNG, since readers differ on them
    OUT/labels/train, OUT/labels/val    one text file per image: a line per region, `class x1 y1 x2 y2 ...`
    OUT/data.yaml                       folders and class names, written at the end of the run

Every tenth image of the input is a validation image.
"""

from pathlib import Path, PureWindowsPath

import yaml
from PIL import Image

from fusioner.batch.sources import Picture
from fusioner.io import atomic_write
from fusioner.segmentation import Segmentation

_MAX_STEM = 100  # characters


def write_example(out: Path, number: int, picture: Picture, result: Segmentation) -> None:
    """Write an image and its regions; `number` is its place in the input."""
    split = "train" if number % 10 else "val"
    stem = f"{number:09}-{PureWindowsPath(picture.name).stem[:_MAX_STEM]}"
    content = picture.content.read_bytes() if isinstance(picture.content, Path) else picture.content
    is_jpeg = isinstance(content, bytes) and content.startswith(b"\xff\xd8")
    with atomic_write(out / "images" / split / f"{stem}{'.jpg' if is_jpeg else '.png'}") as temporary:
        if isinstance(content, bytes) and is_jpeg:
            temporary.write_bytes(content)
        else:
            Image.fromarray(result.image).save(temporary)
    with atomic_write(out / "labels" / split / f"{stem}.txt") as temporary:
        temporary.write_bytes(result.to_bytes("yolo"))


def write_data_yaml(out: Path, labels: tuple[str, ...]) -> None:
    """Write `data.yaml`; an input of one image serves as both splits."""
    splits = [split for split in ("train", "val") if (out / "images" / split).is_dir()]
    if not splits:
        return
    about = {"train": f"images/{splits[0]}", "val": f"images/{splits[-1]}", "names": dict(enumerate(labels))}
    with atomic_write(out / "data.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(about, allow_unicode=True, sort_keys=False), "utf-8")
