"""Mosaics of a small FSS-like tree whose pictures encode their class and number."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.data.fss1000 import mosaic4
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError

IMAGES, SIDE = 3, 8


def build(root: Path, classes: int, side: int = SIDE) -> Path:
    for c in range(classes):
        (root / f"c{c}").mkdir(parents=True)
        for n in range(IMAGES):
            mask = np.zeros((side, side), np.uint8)
            mask[: 2 + c, : 3 + n] = 255
            Image.new("RGB", (side, side), (20 * c, 50 * n, 7)).save(root / f"c{c}" / f"{n}.jpg", quality=100)
            Image.fromarray(mask).save(root / f"c{c}" / f"{n}.png")
    return root


def test_every_image_is_in_one_mosaic_of_four_classes(tmp_path: Path):
    data = mosaic4(build(tmp_path, classes=8))
    tiles = [tile for item in data.items for tile in item.tiles]
    assert len(data.items) == 8 * IMAGES / 4
    assert Counter(tile.id for tile in tiles) == {f"c{c}/{n}": 1 for c in range(8) for n in range(IMAGES)}
    for item in data.items:
        assert len({tile.class_id for tile in item.tiles}) == 4
        assert item.image_files == tuple(tile.image for tile in item.tiles)


def test_the_last_mosaic_is_filled_and_classes_are_balanced(tmp_path: Path):
    data = mosaic4(build(tmp_path, classes=5))
    assert len(data.items) == 2 * IMAGES
    shown = [{tile.class_id for tile in item.tiles} for item in data.items]
    assert all(len(classes) == 4 for classes in shown)
    assert all(shown[i] | shown[i + 1] == {1, 2, 3, 4, 5} for i in range(0, len(shown), 2))


def test_a_seed_repeats_the_arrangement(tmp_path: Path):
    root = build(tmp_path, classes=6)
    ids = [[item.id for item in mosaic4(root, seed=seed).items] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert [item.id for item in open_dataset("mosaic4", root, seed=1).items] == ids[2]


def test_picture_and_mask_are_the_four_tiles(tmp_path: Path):
    data = mosaic4(build(tmp_path, classes=4))
    item = data.items[0]
    rgb, mask = data.read(item)
    assert rgb.shape == (2 * SIDE, 2 * SIDE, 3)
    np.testing.assert_array_equal(mask, data.read_mask(item))
    for k, tile in enumerate(item.tiles):
        at = np.s_[k // 2 * SIDE : (k // 2 + 1) * SIDE, k % 2 * SIDE : (k % 2 + 1) * SIDE]
        own_rgb, own_mask = data.read(tile)
        np.testing.assert_array_equal(rgb[at], own_rgb)
        np.testing.assert_array_equal(mask[at], own_mask)
        assert set(np.unique(mask[at])) == {0, tile.class_id}


def test_tiles_of_other_sizes_are_resized(tmp_path: Path):
    build(tmp_path, classes=3)
    build(tmp_path / "large", classes=4, side=20)
    (tmp_path / "large" / "c3").rename(tmp_path / "c3")
    for path in (tmp_path / "large").rglob("*"):
        if path.is_file():
            path.unlink()
    data = mosaic4(tmp_path)
    rgb, mask = data.read(data.items[0])
    assert rgb.shape[:2] == mask.shape
    assert len(mask) in (2 * SIDE, 40)
    assert set(np.unique(mask)) == {0, 1, 2, 3, 4}


def test_four_classes_are_needed(tmp_path: Path):
    with pytest.raises(FusionerError, match="shows 4 classes"):
        mosaic4(build(tmp_path, classes=3))


def test_unknown_class_folders_are_reported_and_usable(shared: Path):
    official = open_dataset("mosaic4", shared / "data" / "fss_like", "test")
    assert any("--split all" in problem for problem in official.problems)
    every = open_dataset("mosaic4", shared / "data" / "fss_like")
    assert len(every.items) == 210
    assert not every.problems
    assert len({tile.class_id for item in every.items for tile in item.tiles}) == 82
