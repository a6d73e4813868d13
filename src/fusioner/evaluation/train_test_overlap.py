"""Detect overlap of training and evaluation: images by their content, classes by their prompts."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from fusioner.data.base import Item, SegmentationData
from fusioner.data.paths import summarize
from fusioner.errors import FusionerError
from fusioner.features.cache import image_digest, read_bytes


def refuse_trained_images(training: Mapping[str, Any], items: Sequence[Item], allowed: bool = False) -> list[str]:
    """Raise a FusionerError, or if `allowed` return a note, if images to evaluate are among a model's training images.

    They are compared by content: `images` of the card's `training` are the first hex digits of each file's sha256.
    """
    trained = set(training.get("images") or ())
    digits = len(next(iter(trained), ""))
    prefix = cache(lambda file: image_digest(read_bytes(file))[:digits])
    seen = [item.id for item in items if digits and any(prefix(file) in trained for file in item.image_files)]
    if not seen:
        return []
    note = f"the model was trained on {len(seen)} of the {len(items)} images to evaluate ({summarize(seen)})"
    if not allowed:
        raise FusionerError(f"{note}: evaluate another model, or use --allow-leak and report it as a training score")
    return [note]


def trained_classes(training: Mapping[str, Any], data: SegmentationData, unseen: Iterable[int]) -> list[str]:
    """Return a note if classes that the protocol calls unseen were prompted in training."""
    trained = {str(word).casefold() for word in training.get("classes") or ()}
    unseen = sorted(set(unseen))
    seen = [data.classes[i] for i in unseen if data.prompts[i].casefold() in trained]
    if not seen:
        return []
    return [f"{len(seen)} of the {len(unseen)} classes called unseen were in the training: {summarize(seen, 8)}"]
