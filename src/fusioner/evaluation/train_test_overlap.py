"""Whether a model was trained on what it is evaluated on: by the images' bytes, and by the words it was asked for."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from fusioner.data.base import Item, SegmentationData
from fusioner.data.paths import summarize
from fusioner.errors import FusionerError
from fusioner.features.cache import image_digest, read_bytes


def refuse_trained_images(training: Mapping[str, Any], items: Sequence[Item], allowed: bool = False) -> list[str]:
    """Notes about evaluated images that are among a model card's training images, whatever their names.

    Args:
        training: the card's `training` entry; its `images` are the first hex digits of each image file's sha256.
        items: what is to be evaluated.
        allowed: give a note instead of refusing.

    Raises:
        FusionerError: there are such images, and they are not allowed; or an image cannot be read.
    """
    marks = set(training.get("images") or ())
    digits = len(next(iter(marks), ""))
    mark = cache(lambda file: image_digest(read_bytes(file))[:digits])
    seen = [item.id for item in items if digits and any(mark(file) in marks for file in item.image_files)]
    if not seen:
        return []
    sentence = (
        f"the model was trained on {len(seen)} of the {len(items)} images it is to be evaluated on ({summarize(seen)})"
    )
    if not allowed:
        raise FusionerError(f"{sentence}: evaluate another model, or give --allow-leak and call it a training figure")
    return [sentence]


def trained_classes(training: Mapping[str, Any], data: SegmentationData, asked: Iterable[int]) -> list[str]:
    """A note when classes that a protocol calls unseen were prompted in training."""
    known = {str(word).casefold() for word in training.get("classes") or ()}
    asked = sorted(set(asked))
    seen = [data.classes[i] for i in asked if data.prompts[i].casefold() in known]
    if not seen:
        return []
    return [
        f"{len(seen)} of the {len(asked)} classes called unseen were trained on, so they are not: {summarize(seen, 8)}"
    ]
