"""The published fold lists, packed and unpacked."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusioner.data.base import Item, SegmentationData, present_pairs
from fusioner.data.benchmarks import pascal
from fusioner.data.classes import COCO_CLASSES, PASCAL_CLASSES
from fusioner.data.folds import fold_classes, published_pairs, val_pairs
from fusioner.data.fss1000 import fss1000_classes
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError


def test_pascal_folds_are_runs_of_five_and_coco_folds_every_fourth():
    assert fold_classes("pascal", 2)[1] == (11, 12, 13, 14, 15)
    assert fold_classes("coco", 1)[1][:3] == (2, 6, 10)
    for name, count in (("pascal", 20), ("coco", 80)):
        unseen = [i for fold in range(4) for i in fold_classes(name, fold)[1]]
        assert sorted(unseen) == list(range(1, count + 1))
        for fold in range(4):
            seen, held_out = fold_classes(name, fold)
            assert not set(seen) & set(held_out)
            assert len(seen) + len(held_out) == count


def test_a_coco_model_is_tested_on_unseen_pascal_classes():
    published = [  # the table of RePRI (CVPR 2021)
        {"aeroplane", "boat", "chair", "diningtable", "dog", "person"},
        {"horse", "sofa", "bicycle", "bus"},
        {"bird", "car", "pottedplant", "sheep", "train", "tvmonitor"},
        {"bottle", "cat", "cow", "motorbike"},
    ]
    for fold, names in enumerate(published):
        seen, unseen = fold_classes("coco-to-pascal", fold)
        assert {PASCAL_CLASSES[i] for i in unseen} == names
        assert sorted(seen + unseen) == list(range(1, 21))
        pairs = val_pairs("coco-to-pascal", fold)
        assert {c for _, c in pairs} == set(unseen)
        assert set(pairs) < set(published_pairs("pascal", "val"))
    assert sum(len(val_pairs("coco-to-pascal", fold)) for fold in range(4)) == 346 + 451 + 725 + 346


def test_pascal_classes_have_coco_prompts(shared: Path):
    data = open_dataset("coco-to-pascal", shared / "data" / "pascal", "val")
    assert set(data.prompts[1:]) <= set(COCO_CLASSES)
    assert data.classes == PASCAL_CLASSES


@pytest.mark.parametrize(
    ("name", "val", "train"),
    [("pascal", [346, 451, 725, 346], 13680), ("coco", [35783, 17912, 14563, 14315], 170491)],
)
def test_list_sizes_are_the_published_ones(name: str, val: list[int], train: int):
    for fold, size in enumerate(val):
        pairs = val_pairs(name, fold)
        assert len(pairs) == len(set(pairs)) == size
        assert pairs == sorted(pairs)
        assert {c for _, c in pairs} == set(fold_classes(name, fold)[1])
    assert len(published_pairs(name, "train")) == train


def test_the_packed_lists_are_the_published_files(shared: Path):
    with (shared / "splits" / "pascal5i_hsnet.csv").open() as file:
        rows = list(csv.DictReader(file))
    for split, part in (("train", "trn"), ("val", "val")):
        published = {(row["image"], int(row["class"])) for row in rows if row["split"] == part}
        assert set(published_pairs("pascal", split)) == published
    arrays = np.load(shared / "splits" / "coco20i_hsnet.npz")
    for fold in (0, 3):
        for split, part in (("train", "trn"), ("val", "val")):
            images, classes = arrays[f"{part}{fold}_image"], arrays[f"{part}{fold}_class"]
            published = {(f"COCO_{split}2014_{i:012d}", int(c) + 1) for i, c in zip(images, classes, strict=True)}
            ids = set(fold_classes("coco", fold)[split == "val"])
            assert {pair for pair in published_pairs("coco", split) if pair[1] in ids} == published


def test_the_official_training_list_is_read_off_the_masks(shared: Path):
    data = pascal(shared / "data" / "pascal", "train_aug")
    every = data.pairs()
    # Counts by the fold of the class on the available images (2885 / 3816 / 6529 / 2325 on the full set).
    assert Counter((c - 1) // 5 for _, c in every) == {0: 153, 1: 608, 2: 962, 3: 395}
    pairs = data.pairs(fold_classes("pascal", 2)[0])
    assert len(pairs) == 153 + 608 + 395
    hsnet = present_pairs(published_pairs("pascal", "train"), data)
    assert set(hsnet) < set(every)


def test_pairs_of_missing_images_are_left_out():
    items = [Item(i, Path(i), Path(i)) for i in ("2007_000032", "2007_000033")]
    data = SegmentationData("pascal", PASCAL_CLASSES, items)
    pairs = [("2007_000032", 1), ("2007_000032", 15), ("2007_000039", 1)]
    assert present_pairs(pairs, data) == pairs[:2]


def test_fss1000_has_its_official_thousand_classes():
    parts = [fss1000_classes(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [520, 240, 240]
    assert len({name for part in parts for name in part}) == 1000


def test_wrong_arguments_list_the_valid_ones():
    with pytest.raises(FusionerError, match="0, 1, 2 or 3"):
        fold_classes("pascal", 4)
    with pytest.raises(FusionerError, match="no folds"):
        fold_classes("folder", 0)
