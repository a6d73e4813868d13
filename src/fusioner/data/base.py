"""What every data set is here: images with masks, class names, and a reader that checks both."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fusioner.data.masks import read_mask
from fusioner.errors import FusionerError

Pair = tuple[str, int]  # image id, class id
"""An image and one class to ask it for: the unit of the few- and zero-shot protocols."""


@dataclass(frozen=True)
class Item:
    """One image with its mask.

    Attributes:
        id: unique within the data set, without extension.
        image, mask: files.
        class_id: for binary masks (FSS-1000): the class that every bright pixel (> 127) belongs to.
    """

    id: str
    image: Path
    mask: Path
    class_id: int | None = None

    @property
    def image_files(self) -> tuple[Path, ...]:
        """The files whose pixels are shown: `image`, but for items made of several."""
        return (self.image,)


@dataclass
class SegmentationData:
    """A data set in memory: names and paths only, pictures are read one by one.

    Attributes:
        name: its name in the catalog.
        classes: class names by id as the set spells them; 0 is background or unlabeled, "" marks an unused id.
        items: images with masks, in a fixed order.
        ignore_unlabeled: id 0 is no background but "nobody looked": read() turns it into `ignore`.
        prompts: words to prompt a class with, by id (default: `classes` with spaces for underscores).
        mask_values: value in the mask files -> class id, None where it counts nowhere; empty: the value is the id.
        background_prompts: words to prompt beside the classes, for what is background under its own name.
        include_background: the set's mIoU averages background too.
        problems: what was found missing or unusable while the set was opened, one sentence each.
    """

    name: str
    classes: tuple[str, ...]
    items: list[Item]
    ignore_unlabeled: bool = False
    prompts: tuple[str, ...] = ()
    mask_values: Mapping[int, int | None] = field(default_factory=dict)
    background_prompts: tuple[str, ...] = ()
    include_background: bool = False
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.prompts:
            self.prompts = tuple(name.replace("_", " ") for name in self.classes)

    @property
    def ignore(self) -> int:
        """Mask value of pixels that count nowhere: 255, or 65535 when 255 is a class."""
        return 255 if len(self.classes) <= 255 else 65535

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Ids of all classes one can ask for, ascending (0 and unused ids left out)."""
        return tuple(i for i, name in enumerate(self.classes) if i > 0 and name)

    @cached_property
    def by_id(self) -> dict[str, Item]:
        """Items by image id."""
        return {item.id: item for item in self.items}

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """One image with its mask.

        Returns:
            rgb (H, W, 3) uint8; mask (H, W) uint8 or uint16 of class ids, `ignore` where pixels count nowhere.

        Raises:
            FusionerError: an unreadable file, a mask of another size than its image, a value outside the classes.
        """
        from fusioner.image import read_image

        rgb, mask = read_image(item.image), self.read_mask(item)
        if rgb.shape[:2] != mask.shape:
            raise FusionerError(
                f"mask {item.mask} is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), "
                f"its image {item.image} is {rgb.shape[1]}x{rgb.shape[0]}; they must be equal"
            )
        return rgb, mask

    def read_mask(self, item: Item) -> np.ndarray:
        """The mask alone, (H, W), checked against the classes; see read()."""
        if item.class_id is not None:
            return self._read_binary(item, item.class_id)
        stored = read_mask(item.mask)
        self._check_values(np.flatnonzero(np.bincount(stored.ravel())), item.mask)
        return self._lookup[stored]

    def pixel_counts(self, item: Item) -> dict[int, int]:
        """Number of pixels of each class present in an item's mask (0 and ignored pixels left out)."""
        counts = np.bincount(self.read_mask(item).ravel())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts) if i not in (0, self.ignore)}

    def pairs(self, class_ids: Iterable[int] | None = None, min_pixels: int = 1, workers: int = 4) -> list[Pair]:
        """Every (image id, class id) with at least `min_pixels` pixels, sorted; reads all masks (about 1 ms each)."""
        wanted = set(self.class_ids if class_ids is None else class_ids)
        with ThreadPoolExecutor(workers) as pool:  # zlib lets other threads run while it inflates
            found = pool.map(self.pixel_counts, self.items)
            return sorted(
                (item.id, class_id)
                for item, counts in zip(self.items, found, strict=True)
                for class_id, pixels in counts.items()
                if class_id in wanted and pixels >= min_pixels
            )

    @cached_property
    def value_to_class(self) -> dict[int, int | None]:
        """Every value that the mask files may hold -> class id, None where it counts nowhere."""
        ids = {i: i for i, name in enumerate(self.classes) if i == 0 or name}
        return {self.ignore: None, **(self.mask_values or ids)}

    @cached_property
    def _lookup(self) -> np.ndarray:
        """Stored mask value -> class id or `ignore`, for all 65536 values."""
        table = np.full(65536, self.ignore, np.uint8 if self.ignore == 255 else np.uint16)
        for value, class_id in self.value_to_class.items():
            if class_id or (class_id == 0 and not self.ignore_unlabeled):
                table[value] = class_id
        return table

    def _check_values(self, values: Sequence[int] | np.ndarray, path: Path) -> None:
        for value in values:
            if int(value) not in self.value_to_class:
                named = {stored: self.classes[i] for stored, i in self.value_to_class.items() if i is not None}
                first, last = min(named), max(named)
                raise FusionerError(
                    f"mask {path} holds value {value}, which is no class of {self.name} "
                    f"({first} = {named[first]} ... {last} = {named[last]}; {self.ignore} = ignore)"
                )

    def _read_binary(self, item: Item, class_id: int) -> np.ndarray:
        from fusioner.image import read_image

        bright = read_image(item.mask)[..., 0] > 127  # some of the published masks are RGB, all are black and white
        return np.where(bright, class_id, 0).astype(np.uint8 if self.ignore == 255 else np.uint16)


@dataclass(frozen=True)
class PairCoverage:
    """How many of a list's pairs cannot be used because their image or mask is not on disk."""

    listed: int
    present: int
    by_class: dict[int, tuple[int, int]]
    """class id -> (pairs listed, pairs present)."""

    def rows(self, classes: Sequence[str]) -> list[tuple[str, int, int, int]]:
        """Table rows (class name, listed, present, missing), classes in the order of their ids."""
        return [(classes[i], n, here, n - here) for i, (n, here) in sorted(self.by_class.items())]


def present_pairs(pairs: Sequence[Pair], data: SegmentationData) -> tuple[list[Pair], PairCoverage]:
    """Split a published list into the pairs whose image and mask are there, in order, and a count of the others."""
    here = [pair for pair in pairs if pair[0] in data.by_id]
    listed, present = Counter(c for _, c in pairs), Counter(c for _, c in here)
    return here, PairCoverage(len(pairs), len(here), {c: (listed[c], present[c]) for c in listed})
