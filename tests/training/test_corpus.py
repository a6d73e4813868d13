"""The training corpus: folds, pairs, order, held-out images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.data.folds import fold_classes
from fusioner.errors import FusionerError
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import DataLoader
from fusioner.training.dataset import build_corpus, held_out_count, open_split
from fusioner.training.prompt_sampling import Vocabulary


@pytest.fixture(scope="module")
def own_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for i in range(60):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.full((8, 8), i % 3, np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("background\nhat\nshoe\n")
    (root / "val.txt").write_text("58\n59\n")
    return root


def test_a_fold_prompts_seen_classes_on_images_that_show_one(voc_tree: Path) -> None:
    split = open_split("pascal", voc_tree, 0)
    seen, unseen = fold_classes("pascal", 0)
    assert split.classes == seen
    pairs = build_corpus([split], "pairs")
    assert {sample.class_id for sample in pairs.samples} == {8, 12}
    images = build_corpus([split], "images")
    shown = [set(split.data.pixel_counts(sample.item)) for sample in images.samples]
    assert all(classes & set(seen) for classes in shown)
    assert any(classes & set(unseen) for classes in shown)  # the official recipe includes such images


def test_without_a_fold_everything_is_prompted(voc_tree: Path) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "pairs")
    assert Counter(sample.class_id for sample in corpus.samples) == {1: 8, 8: 12, 2: 8, 12: 8, 3: 8}
    assert len(build_corpus([open_split("pascal", voc_tree)], "images").samples) == 24


def test_small_sets_hold_out_a_larger_share() -> None:
    counts = {images: held_out_count(images, 32) for images in (4, 16, 40, 100, 199, 200, 400, 500, 640, 5000)}
    assert counts == {4: 0, 16: 3, 40: 8, 100: 20, 199: 20, 200: 20, 400: 20, 500: 25, 640: 32, 5000: 32}
    assert held_out_count(5000, 0) == held_out_count(40, 0) == 0


def test_held_out_images_are_in_no_training_pair(own_tree: Path) -> None:
    split = open_split("folder", own_tree)
    for sampling in ("pairs", "images"):
        corpus = build_corpus([split], sampling, val_images=5, seed=3)
        trained = {sample.item.id for sample in corpus.samples}
        held_out = {sample.item.id for sample in corpus.held_out}
        assert len(held_out) == 5
        assert not trained & held_out
        assert not {"58", "59"} & (trained | held_out)
        assert {sample.item.id for sample in corpus.images} == trained | held_out
    assert build_corpus([split], "images", val_images=5, seed=3).digest() == corpus.digest()
    assert build_corpus([split], "images", val_images=5, seed=4).digest() != corpus.digest()
    assert build_corpus([split], "images").digest() != corpus.digest()


def test_several_data_sets_have_their_own_classes(voc_tree: Path, own_tree: Path) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree), open_split("folder", own_tree)], "images")
    assert corpus.class_offsets == (0, 21, 24)
    assert {"cat", "hat"} <= set(corpus.names())
    assert Counter(sample.split for sample in corpus.samples) == {0: 24, 1: 58}


def test_a_fold_excludes_further_data_sets(voc_tree: Path, own_tree: Path) -> None:
    with pytest.raises(FusionerError, match="--fold and --extra-dataset"):
        build_corpus([open_split("pascal", voc_tree, 1), open_split("folder", own_tree)], "images")
    with pytest.raises(FusionerError, match="no folds"):
        open_split("folder", own_tree, 1)


def test_every_epoch_has_every_example_once_in_another_order(voc_tree: Path) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    samples, config = corpus.samples, TrainConfig().override(batch_size=5)
    order, again = (DataLoader(corpus, [], Vocabulary([]), torch.zeros(0, 1), config).samples for _ in range(2))
    stream = [sample.item.id for step in range(10) for sample in order(step)]
    first, second = stream[:24], stream[24:48]
    assert sorted(first) == sorted(second) == sorted({sample.item.id for sample in samples})
    assert first != second
    assert [sample.item.id for sample in again(7)] == stream[35:40]
    assert again(0) == order(0)


def test_coco_trains_on_the_published_pairs(shared: Path) -> None:
    split = open_split("coco", shared / "data" / "coco", 3)
    corpus = build_corpus([split], "pairs")
    assert corpus.samples
    assert all("train2014" in str(sample.item.image) for sample in corpus.samples)
    assert {sample.class_id for sample in corpus.samples} <= set(fold_classes("coco", 3)[0])
