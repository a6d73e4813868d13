"""What there is to train on: one data set or several, which of their classes are prompted, and in which order.

A fold's training asks for seen classes only, on images that show one. The published lists hold such images with unseen
classes in them, too: their pixels count as background, as in the official recipe, or nowhere. Validation images are
never opened.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args
from zlib import crc32

import numpy as np
from jaxtyping import Int64

from fusioner.data.base import Item, Pair, SegmentationData, present_pairs
from fusioner.data.folds import fold_classes, fold_pairs, published_pairs
from fusioner.data.paths import summarize
from fusioner.data.registry import TRAINING_SPLITS, DatasetName, TrainableDataset, open_dataset
from fusioner.errors import FusionerError
from fusioner.training.config import Sampling, Unseen

PORTIONS = 2
"""What is fitted to the training images (`memory`) is also fitted without each of so many portions of them."""


@dataclass(frozen=True)
class Part:
    """One data set of a training.

    Attributes:
        root: the folder it was opened from.
        data: its training split.
        fold: None trains on all classes.
        classes: ids that may be prompted, ascending.
        ignored: mask values whose pixels count nowhere.
    """

    root: Path
    data: SegmentationData
    fold: int | None
    classes: tuple[int, ...]
    ignored: tuple[int, ...]

    def pairs(self) -> list[Pair]:
        """Every (image id, class id) to train on, sorted; for most sets this reads all masks, about 1 ms each."""
        if self.data.name == "coco":
            listed = [pair for pair in published_pairs("coco", "train") if pair[1] in set(self.classes)]
            return present_pairs(listed, self.data)[0]
        if self.data.name == "fss1000":
            return sorted((item.id, item.class_id) for item in self.data.items if item.class_id is not None)
        if self.fold is not None:
            return present_pairs(fold_pairs(self.data.name, self.fold, "train", data=self.data), self.data)[0]
        return self.data.pairs(self.classes)


@dataclass(frozen=True)
class Example:
    """What one place of a batch is filled with: an image of a part, and the class to prompt (None: several)."""

    part: int
    item: Item
    class_id: int | None


@dataclass(frozen=True)
class Corpus:
    """Examples to train on, and those set aside to choose the best checkpoint by."""

    parts: tuple[Part, ...]
    examples: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each part's class ids begin when the classes of all parts are numbered through; and their number."""
        return tuple(np.cumsum([0, *(len(part.data.classes) for part in self.parts)]).tolist())

    @property
    def images(self) -> list[tuple[Part, Item]]:
        """Every image the weights or the choice among them may depend on, each once, in a fixed order."""
        seen = {(e.part, e.item.id): e.item for e in (*self.examples, *self.held_out)}
        return [(self.parts[part], item) for (part, _), item in sorted(seen.items(), key=lambda entry: entry[0])]

    def names(self) -> list[str]:
        """Words of all prompted classes of all parts, each once."""
        words = (part.data.prompts[class_id] for part in self.parts for class_id in part.classes)
        return list(dict.fromkeys(words))

    def some_images(self, count: int, seed: int) -> list["Example"]:
        """One example of each training image, at most so many images, drawn by the seed."""
        unique = list({(example.part, example.item.id): example for example in self.examples}.values())
        drawn = np.random.default_rng((seed, 3)).permutation(len(unique))[:count]
        return [unique[i] for i in sorted(drawn)]

    def digest(self) -> str:
        """Sha256 (hex) of what a training asks of which images: differs whenever the run would see other data."""
        total = hashlib.sha256()
        for part in self.parts:
            about = f"{part.data.name}|{part.fold}|{part.classes}|{part.ignored}|{part.data.prompts}\n"
            total.update(about.encode())
        for example in (*self.examples, None, *self.held_out):
            line = "" if example is None else f"{example.part}|{example.item.id}|{example.class_id}"
            total.update(f"{line}\n".encode())
        return total.hexdigest()


def portion_of(image: str) -> int:
    """The portion of the training images that one belongs to, by its id."""
    return crc32(image.encode()) % PORTIONS


def open_part(name: str, root: Path, fold: int | None = None, unseen: Unseen = "background") -> Part:
    """One data set's training split; `unseen` is what the pixels of a fold's unseen classes count as.

    Raises:
        FusionerError: whatever is wrong with the set, one without training images, a fold for a set that has none, or a
            fold outside 0..3.
    """
    if name in get_args(DatasetName) and name not in get_args(TrainableDataset):
        raise FusionerError(f"data set {name!r} is there to test on: it has no training images")
    if fold is not None and name not in ("pascal", "coco"):
        raise FusionerError(f"data set {name!r} has no folds: leave --fold out")
    data = open_dataset(name, root, TRAINING_SPLITS.get(name, "train"))
    seen, others = (data.class_ids, ()) if fold is None else fold_classes(name, fold)
    return Part(root, data, fold, seen, (data.ignore, *others) if unseen == "ignored" else (data.ignore,))


def build_corpus(
    parts: Sequence[Part], sampling: Sampling, holdout: int = 0, seed: int = 0, balance: float = 0.0
) -> Corpus:
    """All examples of the parts, less the images held out (at most a twentieth of all, drawn by the seed).

    With `balance` those of a smaller part come (largest / its own number) ** balance times, some once more than others.

    Raises:
        FusionerError: no example at all, or a fold together with further sets, whose classes would include its unseen.
    """
    if len(parts) > 1 and any(part.fold is not None for part in parts):
        raise FusionerError(
            "--fold and --also exclude each other: further sets would teach the fold's unseen classes under other names"
        )
    examples = [example for number, part in enumerate(parts) for example in _examples(number, part, sampling)]
    if not examples:
        tried = summarize(f"{part.data.name} ({part.root})" for part in parts)
        raise FusionerError(f"there is nothing to train on in {tried}: no mask shows a class that may be prompted")
    images = sorted({(example.part, example.item.id) for example in examples})
    count = min(holdout, len(images) // 20)
    drawn = np.random.default_rng((seed, 0)).permutation(len(images))[:count]
    aside = {images[i] for i in drawn}
    kept = tuple(example for example in examples if (example.part, example.item.id) not in aside)
    held_out = tuple(example for example in examples if (example.part, example.item.id) in aside)
    return Corpus(tuple(parts), _balanced(kept, balance, seed) if balance else kept, held_out)


def _balanced(examples: tuple[Example, ...], balance: float, seed: int) -> tuple[Example, ...]:
    by_part: dict[int, list[Example]] = {}
    for example in examples:
        by_part.setdefault(example.part, []).append(example)
    largest, repeated = max(map(len, by_part.values())), []
    for part, own in by_part.items():
        whole, more = divmod(round(len(own) * (largest / len(own)) ** balance), len(own))
        again = np.random.default_rng((seed, 5, part)).permutation(len(own))[:more]
        repeated += own * whole + [own[i] for i in sorted(again)]
    return tuple(repeated)


class Order:
    """Which examples fill which step: a new permutation every epoch, steps running on across epochs' ends."""

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, int)

    def steps(self, epochs: int) -> int:
        """Updates that so many epochs take."""
        return -(-epochs * len(self.examples) // self.batch_size)

    def __call__(self, step: int) -> list[Example]:
        """The batch of a step, the same whenever it is asked for."""
        first = step * self.batch_size
        return [self._at(*divmod(place, len(self.examples))) for place in range(first, first + self.batch_size)]

    def _at(self, epoch: int, place: int) -> Example:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        return self.examples[self._permutation[place]]

    def _permute(self, epoch: int) -> Int64[np.ndarray, " n"]:
        return np.random.default_rng((self.seed, 1, epoch)).permutation(len(self.examples))


def _examples(number: int, part: Part, sampling: Sampling) -> list[Example]:
    by_id = part.data.by_id
    if sampling == "pairs":
        return [Example(number, by_id[image], class_id) for image, class_id in part.pairs()]
    if part.fold is None:
        return [Example(number, item, None) for item in part.data.items]
    return [Example(number, by_id[image], None) for image in sorted({image for image, _ in part.pairs()})]
