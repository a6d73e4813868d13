"""The common form of all data sets: images with masks and class names, and a reader that checks both."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fusioner.data.masks import Colour, read_mask, resize_mask
from fusioner.errors import FusionerError
from fusioner.image import image_size, is_turned, read_image, resize

Pair = tuple[str, int]
"""(image id, class id): one image and one class to prompt, the unit of the few- and zero-shot protocols."""


@dataclass(frozen=True)
class Item:
    """One image with its mask."""

    id: str  # unique within the data set
    image: Path
    mask: Path
    class_id: int | None = None  # for binary masks (FSS-1000): of every bright pixel (> 127)
    tiles: tuple["Item", ...] = ()  # of a mosaic: top left, top right, bottom left, bottom right

    @property
    def image_files(self) -> tuple[Path, ...]:
        """All image files that the item is composed of (several for a mosaic)."""
        return tuple(tile.image for tile in self.tiles) or (self.image,)


@dataclass
class SegmentationData:
    """A data set: names and paths only, images and masks are read one by one."""

    name: str  # in the registry
    classes: tuple[str, ...]  # by id, as the data set spells them; 0: background or unlabeled, "": an unused id
    items: list[Item]  # in a fixed order
    ignore_unlabeled: bool = False  # id 0 means "not annotated", not background: its pixels are read as `ignore`
    prompts: tuple[str, ...] = ()  # of the classes by id; default: `classes` with spaces for underscores
    mask_values: Mapping[int, int | None] = field(default_factory=dict)
    """Value in the mask files -> class id, None for ignored; empty: the value is the id."""
    background_prompts: tuple[str, ...] = ()  # further prompts whose pixels count as background
    include_background: bool = False  # in the mean IoU
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """(r, g, b) in the mask files -> mask value; empty: see `masks.read_mask`."""
    problems: list[str] = field(default_factory=list)  # one sentence for each kind of missing or unusable files
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.prompts:
            self.prompts = tuple(name.replace("_", " ") for name in self.classes)

    @property
    def ignore(self) -> int:
        """Mask value of pixels that are not counted: 255, or 65535 if 255 is a class."""
        return 255 if len(self.classes) <= 255 else 65535

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Ids of all classes that can be prompted, ascending (without 0 and unused ids)."""
        return tuple(i for i, name in enumerate(self.classes) if i > 0 and name)

    @cached_property
    def by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self.items}

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """Read an image, (H, W, 3) uint8, and its mask, (H, W) uint8 or uint16 of class ids and `ignore`.

        Files that are unreadable, differ in size or hold a value that is no class raise a FusionerError.
        """
        if item.tiles:
            images, masks = zip(*map(self.read, item.tiles), strict=True)
            return _arrange(images), _arrange(masks)
        rgb, mask = read_image(item.image), self._read_mask(item)
        check_size(item, rgb.shape[:2], mask.shape)
        return rgb, mask

    def read_mask(self, item: Item) -> np.ndarray:
        """Read the mask alone, (H, W); raises as `read` (sizes are compared at the first reading)."""
        if item.tiles:
            return _arrange([self.read_mask(tile) for tile in item.tiles])
        mask = self._read_mask(item)
        if item.id not in self._checked and item.image.is_file():
            check_size(item, image_size(item.image), mask.shape)
            self._checked.add(item.id)
        return mask

    def pixel_counts(self, item: Item) -> dict[int, int]:
        """Number of pixels of each class in an item's mask (without 0 and ignored pixels)."""
        counts = np.bincount(self.read_mask(item).ravel())
        return {int(i): int(counts[i]) for i in np.flatnonzero(counts) if i not in (0, self.ignore)}

    def pairs(self, class_ids: Iterable[int] | None = None) -> list[Pair]:
        """List every (image id, class id) whose class has a pixel in the image, sorted; reads all masks (1 ms each)."""
        wanted = set(self.class_ids if class_ids is None else class_ids)
        with ThreadPoolExecutor(4) as pool:  # zlib releases the GIL
            counts = pool.map(self.pixel_counts, self.items)
            return sorted(
                (item.id, i) for item, count in zip(self.items, counts, strict=True) for i in wanted & set(count)
            )

    def require_classes(self) -> None:
        """Raise a FusionerError if no mask has a pixel of any class; reads masks up to the first that has one."""
        if not any(map(self.pixel_counts, self.items)):
            raise FusionerError(f"there is nothing to learn or measure in {self.name}: {self.no_class_note()}")

    def no_class_note(self) -> str:
        """Return a sentence on masks without any class: the values that they hold, and how to map them to classes."""
        found = {0}
        for item in self.items[:200]:
            with suppress(FusionerError):  # reported where the mask is used
                found |= set(np.unique(read_mask(item.mask, self.colours or None)).tolist())
        values = sorted(found)
        listed = ", ".join(map(str, values[:-1][:20])) + (" and " if len(values) > 1 else "") + str(values[-1])
        flag = f"--mask-values {values[-1]}={min(self.class_ids, default=1)}"
        return (
            f"no mask holds any class: pixels of class i must have the value i, {self.ignore} is ignored; "
            f"the masks hold {listed}: is {values[-1]} the object? Then add {flag}"
        )

    def with_mask_values(self, aliases: Mapping[int, int | None]) -> "SegmentationData":
        """Return the data set with further mask values, each read as another value of it (None: ignored)."""
        table = dict(self.value_to_class)
        for value, other in aliases.items():
            if other is not None and other not in table:
                raise FusionerError(f"mask value {value} cannot be read as {other}, which is no class of {self.name}")
            table[value] = None if other is None else self.value_to_class[other]
        return replace(self, mask_values=table)

    @cached_property
    def value_to_class(self) -> dict[int, int | None]:
        """Every value that is valid in the mask files -> class id, None for ignored."""
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

    def _read_mask(self, item: Item) -> np.ndarray:
        if item.class_id is not None:
            bright = read_image(item.mask)[..., 0] > 127  # some of the published masks are RGB, all are black and white
            return np.where(bright, item.class_id, 0).astype(self._lookup.dtype)
        stored, valid = read_mask(item.mask, self.colours or None), self.value_to_class
        for value in np.flatnonzero(np.bincount(stored.ravel())).tolist():
            if value not in valid:
                named = {known: self.classes[i] for known, i in valid.items() if i is not None}
                first, last = min(named), max(named)
                raise FusionerError(
                    f"mask {item.mask} holds value {value}, which is no class of {self.name} "
                    f"({first} = {named[first]} ... {last} = {named[last]}; {self.ignore} = ignore)"
                )
        return self._lookup[stored]


def check_size(item: Item, image: Sequence[int], mask: Sequence[int]) -> None:
    """Raise a FusionerError unless image and mask have the same (height, width)."""
    if tuple(image) != tuple(mask):
        turned = is_turned(item.image) and tuple(image) == tuple(mask[::-1])
        hint = (
            " (its EXIF orientation turns it, the mask was drawn on the stored pixels: turn the mask)" if turned else ""
        )
        raise FusionerError(
            f"mask {item.mask} is {mask[1]}x{mask[0]} pixels (width x height), "
            f"its image {item.image} is {image[1]}x{image[0]}{hint}; they must be equal"
        )


def _arrange(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Arrange four arrays (h, w, ...), resized to the size of the first, as one (2h, 2w, ...)."""
    size = tiles[0].shape[0], tiles[0].shape[1]
    resized = [resize(tile, size) if tile.ndim == 3 else resize_mask(tile, size) for tile in tiles]
    return np.concatenate([np.concatenate(resized[:2], axis=1), np.concatenate(resized[2:], axis=1)])


def present_pairs(pairs: Sequence[Pair], data: SegmentationData) -> list[Pair]:
    """Return the pairs of a published list whose image and mask are on disk, in order."""
    return [pair for pair in pairs if pair[0] in data.by_id]
