"""A PASCAL tree whose pictures show each class in a distinct colour, from which predictors recognise it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.data.base import SegmentationData
from fusioner.data.benchmarks import pascal
from fusioner.data.folds import published_pairs


def colour_of(class_id: int) -> tuple[int, int, int]:
    """Return the colour of a class."""
    return (class_id * 10, 255 - class_id * 10, 128)


@pytest.fixture(scope="session")
def colour_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve val images of fold 0 and two of fold 2, with all their published classes and an ignored rim."""
    root = tmp_path_factory.mktemp("voc")
    pairs = published_pairs("pascal", "val")
    ids = [i for i, c in pairs if c <= 5][:12] + [i for i, c in pairs if c in (12, 13)][:2]
    masks, images = root / "SegmentationClassAug", root / "VOCdevkit" / "VOC2012" / "JPEGImages"
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    for folder in (masks, images, lists):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in dict.fromkeys(ids):
        mask = np.zeros((30 + int(rng.integers(9)), 40), np.uint8)
        present = [c for i, c in pairs if i == image]
        for k, class_id in enumerate(present):
            left = k * 40 // len(present)
            mask[4 : 15 + int(rng.integers(12)), left + 2 : left + 40 // len(present) - 2] = class_id
        rgb = np.array([colour_of(c) for c in range(21)], np.uint8)[mask]
        mask[:2] = 255
        Image.fromarray(mask).save(masks / f"{image}.png")
        Image.fromarray(rgb).save(images / f"{image}.png")
    (lists / "val.txt").write_text("\n".join(sorted(set(ids))) + "\n")
    return root


@pytest.fixture
def voc_data(colour_voc: Path) -> SegmentationData:
    return pascal(colour_voc, "val")
