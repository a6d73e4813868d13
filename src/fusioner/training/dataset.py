"""Training data: one data set or several, the classes to prompt, and the order of samples.

A fold trains on its seen classes only, with images that show one. The published lists include images that also show
unseen classes; those pixels count as background, as in the official recipe, or are ignored. Validation images are never
opened.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args
from zlib import crc32

import numpy as np

from fusioner.data.base import Item, Pair, SegmentationData, present_pairs
from fusioner.data.folds import fold_classes, published_pairs
from fusioner.data.paths import summarize
from fusioner.data.registry import TRAINING_SPLITS, DatasetName, TrainableDataset, open_dataset
from fusioner.errors import FusionerError
from fusioner.training.config import Sampling, UnseenPixels

CROSS_FIT_FOLDS = 2
"""The closed-set head is also fitted without each of this many parts of the training images."""


@dataclass(frozen=True)
class DatasetSplit:
    """Training split of one data set."""

    root: Path  # the folder it was opened from
    data: SegmentationData
    fold: int | None  # None: train on all classes
    classes: tuple[int, ...]  # ids that may be prompted, ascending
    ignored: tuple[int, ...]  # mask values excluded from loss and metrics

    def pairs(self) -> list[Pair]:
        """Return every (image id, class id) to train on, sorted; most sets read all masks, at about 1 ms each."""
        if self.data.name == "coco":
            listed = [pair for pair in published_pairs("coco", "train") if pair[1] in set(self.classes)]
            return present_pairs(listed, self.data)
        if self.data.name == "fss1000":
            return sorted((item.id, item.class_id) for item in self.data.items if item.class_id is not None)
        return self.data.pairs(self.classes)


@dataclass(frozen=True)
class Sample:
    """One batch entry: an image of split number `split`, and the class to prompt (None: several)."""

    split: int
    item: Item
    class_id: int | None

    @property
    def image(self) -> tuple[int, str]:
        """Split and id of the image."""
        return self.split, self.item.id


@dataclass(frozen=True)
class Corpus:
    """Training samples, and those held out for model selection."""

    splits: tuple[DatasetSplit, ...]
    samples: tuple[Sample, ...]
    held_out: tuple[Sample, ...]

    @cached_property
    def class_offsets(self) -> tuple[int, ...]:
        """First number of each split's classes in a joint numbering, followed by the total."""
        return tuple(np.cumsum([0, *(len(split.data.classes) for split in self.splits)]).tolist())

    @property
    def images(self) -> list[Sample]:
        """One sample of every image that weights or model selection depend on, in a fixed order."""
        found = {sample.image: sample for sample in (*self.samples, *self.held_out)}
        return [found[image] for image in sorted(found)]

    @property
    def num_held_out(self) -> int:
        """Number of held-out images."""
        return len({sample.image for sample in self.held_out})

    def names(self) -> list[str]:
        """Return the words of all prompted classes of all splits, each once."""
        words = (split.data.prompts[class_id] for split in self.splits for class_id in split.classes)
        return list(dict.fromkeys(words))

    def digest(self) -> str:
        """Return a sha256 (hex) of splits, samples and prompts; it differs whenever a run would see other data."""
        total = hashlib.sha256()
        for split in self.splits:
            values = dict(split.data.mask_values)
            line = f"{split.data.name}|{split.fold}|{split.classes}|{split.ignored}|{split.data.prompts}|{values}\n"
            total.update(line.encode())
        for sample in (*self.samples, None, *self.held_out):
            line = "" if sample is None else f"{sample.split}|{sample.item.id}|{sample.class_id}"
            total.update(f"{line}\n".encode())
        return total.hexdigest()


def cross_fit_fold(image: str) -> int:
    """Return the cross-fitting fold of an image id."""
    return crc32(image.encode()) % CROSS_FIT_FOLDS


def open_split(
    name: str,
    root: Path,
    fold: int | None = None,
    unseen_pixels: UnseenPixels = "background",
    mask_values: str = "",
) -> DatasetSplit:
    """Open the training split of a data set; `mask_values` as for `open_dataset`."""
    if name in get_args(DatasetName) and name not in get_args(TrainableDataset):
        raise FusionerError(f"data set {name!r} is for testing only: it has no training images")
    if fold is not None and name not in ("pascal", "coco"):
        raise FusionerError(f"data set {name!r} has no folds: leave --fold out")
    data = open_dataset(name, root, TRAINING_SPLITS.get(name, "train"), mask_values)
    data.require_classes()
    seen, unseen = (data.class_ids, ()) if fold is None else fold_classes(name, fold)
    ignored = (data.ignore, *unseen) if unseen_pixels == "ignore" else (data.ignore,)
    return DatasetSplit(root, data, fold, seen, ignored)


def build_corpus(splits: Sequence[DatasetSplit], sampling: Sampling, val_images: int = 0, seed: int = 0) -> Corpus:
    """Collect the samples of all splits, minus the held-out images, drawn by the seed; see `held_out_count`."""
    if len(splits) > 1 and any(split.fold is not None for split in splits):
        raise FusionerError(
            "--fold and --extra-dataset exclude each other: further sets would teach the fold's unseen classes under "
            "other names"
        )
    samples = [sample for number, split in enumerate(splits) for sample in _samples(number, split, sampling)]
    if not samples:
        opened = summarize(f"{split.data.name} ({split.root})" for split in splits)
        raise FusionerError(f"there is nothing to train on in {opened}: no mask shows a class that may be prompted")
    images = sorted({sample.image for sample in samples})
    count = held_out_count(len(images), val_images)
    drawn = np.random.default_rng((seed, 0)).permutation(len(images))[:count]
    held_out = {images[i] for i in drawn}
    return Corpus(
        tuple(splits),
        tuple(sample for sample in samples if sample.image not in held_out),
        tuple(sample for sample in samples if sample.image in held_out),
    )


def held_out_count(images: int, val_images: int) -> int:
    """Return how many of the training images to hold out: at most a twentieth, or of few a fifth up to 20 images."""
    return min(val_images, max(images // 20, min(images // 5, 20)))


def _samples(number: int, split: DatasetSplit, sampling: Sampling) -> list[Sample]:
    by_id = split.data.by_id
    if sampling == "pairs":
        return [Sample(number, by_id[image], class_id) for image, class_id in split.pairs()]
    if split.fold is None:
        return [Sample(number, item, None) for item in split.data.items]
    return [Sample(number, by_id[image], None) for image in sorted({image for image, _ in split.pairs()})]
