"""Mosaic-4: four FSS-1000 test images of four classes, tiled two by two; all four names are prompted together.

The paper names the task but not its lists. Here the classes are shuffled and taken four at a time, each with one of its
images that was not used yet, until every image was used. The 240 official test classes give 600 mosaics; each class is
in 10 of them and each image in one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.data.fss1000 import fss1000
from fusioner.errors import FusionerError

TILES = 4


@dataclass(frozen=True)
class Mosaic(Item):
    """Four items as one: top left, top right, bottom left, bottom right. `image` and `mask` are those of the first."""

    tiles: tuple[Item, ...] = ()

    @property
    def image_files(self) -> tuple[Path, ...]:
        """The image files of the tiles."""
        return tuple(tile.image for tile in self.tiles)


class MosaicData(SegmentationData):
    """Reads mosaics; tiles are resized to the size of the first one."""

    def read(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """See SegmentationData."""
        if not isinstance(item, Mosaic):
            return super().read(item)
        images, masks = zip(*(self.read(tile) for tile in item.tiles), strict=True)
        return _tile(images), _tile(masks)

    def read_mask(self, item: Item) -> np.ndarray:
        """See SegmentationData."""
        return _tile([self.read_mask(t) for t in item.tiles]) if isinstance(item, Mosaic) else super().read_mask(item)


def mosaic4(root: Path, split: str | None = None, seed: int = 0) -> SegmentationData:
    """Compose mosaics of FSS-1000, or of any folder of the same layout.

    Args:
        root, split: see `fss1000`.
        seed: of the arrangement.

    Raises:
        FusionerError: see `fss1000`; fewer than four classes.
    """
    data = fss1000(root, split)
    if len(data.class_ids) < TILES:
        raise FusionerError(f"a mosaic shows {TILES} classes, {root} has {len(data.class_ids)}")
    rng = np.random.default_rng(seed)
    by_class = {i: [item for item in data.items if item.class_id == i] for i in data.class_ids}
    shuffled = {i: [items[k] for k in rng.permutation(len(items))] for i, items in by_class.items() if items}
    mosaics: list[Item] = []
    for turn in range(max(len(items) for items in shuffled.values())):
        order = rng.permutation(list(shuffled)).tolist()
        order += order[: -len(order) % TILES]  # complete the last mosaic with the first classes of the turn
        for start in range(0, len(order), TILES):
            tiles = tuple(shuffled[i][turn % len(shuffled[i])] for i in order[start : start + TILES])
            name = f"{len(mosaics) + 1:03d}: {' + '.join(tile.id for tile in tiles)}"
            mosaics.append(Mosaic(name, tiles[0].image, tiles[0].mask, tiles=tiles))
    return MosaicData("mosaic4", data.classes, mosaics, prompts=data.prompts, problems=data.problems)


def _tile(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Four arrays (H, W, ...) -> one (2H, 2W, ...)."""
    height, width = parts[0].shape[:2]
    method = Image.Resampling.BILINEAR if parts[0].ndim == 3 else Image.Resampling.NEAREST
    resized = [
        part if part.shape[:2] == (height, width) else np.asarray(Image.fromarray(part).resize((width, height), method))
        for part in parts
    ]
    return np.concatenate([np.concatenate(resized[:2], axis=1), np.concatenate(resized[2:], axis=1)])
