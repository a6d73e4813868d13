"""What is trained on: folds, pairs, order, what is held out."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner.data.folds import fold_classes
from fusioner.errors import FusionerError
from fusioner.training.dataset import Order, build_corpus, open_part


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
    part = open_part("pascal", voc_tree, 0)
    seen, unseen = fold_classes("pascal", 0)
    assert part.classes == seen
    pairs = build_corpus([part], "pairs")
    assert {example.class_id for example in pairs.examples} == {8, 12}
    images = build_corpus([part], "images")
    shown = [set(part.data.pixel_counts(example.item)) for example in images.examples]
    assert all(classes & set(seen) for classes in shown)
    assert any(classes & set(unseen) for classes in shown)  # the official recipe keeps such images


def test_without_a_fold_everything_is_prompted(voc_tree: Path) -> None:
    corpus = build_corpus([open_part("pascal", voc_tree)], "pairs")
    assert Counter(example.class_id for example in corpus.examples) == {1: 8, 8: 12, 2: 8, 12: 8, 3: 8}
    assert len(build_corpus([open_part("pascal", voc_tree)], "images").examples) == 24


def test_held_out_images_are_trained_on_by_no_pair(own_tree: Path) -> None:
    part = open_part("folder", own_tree)
    for sampling in ("pairs", "images"):
        corpus = build_corpus([part], sampling, holdout=5, seed=3)
        trained = {example.item.id for example in corpus.examples}
        aside = {example.item.id for example in corpus.held_out}
        assert len(aside) == (2 if sampling == "images" else 1)  # at most a twentieth
        assert not trained & aside
        assert not {"58", "59"} & (trained | aside)
        assert {item.id for _, item in corpus.images} == trained | aside
    assert build_corpus([part], "images", holdout=5, seed=3).digest() == corpus.digest()
    assert build_corpus([part], "images", holdout=5, seed=4).digest() != corpus.digest()
    assert build_corpus([part], "images").digest() != corpus.digest()


def test_several_sets_keep_their_own_classes(voc_tree: Path, own_tree: Path) -> None:
    corpus = build_corpus([open_part("pascal", voc_tree), open_part("folder", own_tree)], "images")
    assert corpus.offsets == (0, 21, 24)
    assert {"cat", "hat"} <= set(corpus.names())
    assert Counter(example.part for example in corpus.examples) == {0: 24, 1: 58}


@given(balance=st.floats(0, 1))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_small_set_is_brought_up_by_whole_images(voc_tree: Path, own_tree: Path, balance: float) -> None:
    parts = [open_part("pascal", voc_tree), open_part("folder", own_tree)]
    corpus = build_corpus(parts, "images", balance=balance)
    counts = [Counter(example.item.id for example in corpus.examples if example.part == part) for part in (0, 1)]
    small, large = (len(part.data.items) for part in parts)
    assert set(counts[1].values()) == {1}
    assert sum(counts[1].values()) == large
    assert sum(counts[0].values()) == round(small * (large / small) ** balance)
    assert len(counts[0]) == small
    assert max(counts[0].values()) - min(counts[0].values()) <= 1
    assert len(corpus.images) == small + large


def test_a_fold_admits_no_further_sets(voc_tree: Path, own_tree: Path) -> None:
    with pytest.raises(FusionerError, match="--fold and --also"):
        build_corpus([open_part("pascal", voc_tree, 1), open_part("folder", own_tree)], "images")
    with pytest.raises(FusionerError, match="no folds"):
        open_part("folder", own_tree, 1)


def test_every_epoch_shows_every_example_once_in_another_order(voc_tree: Path) -> None:
    examples = build_corpus([open_part("pascal", voc_tree)], "images").examples
    order = Order(examples, 5, seed=0)
    assert order.steps(2) == 10  # 48 images in tens of 5
    stream = [example.item.id for step in range(10) for example in order(step)]
    first, second = stream[:24], stream[24:48]
    assert sorted(first) == sorted(second) == sorted({example.item.id for example in examples})
    assert first != second
    again = Order(examples, 5, seed=0)
    assert [example.item.id for example in again(7)] == stream[35:40]
    assert again(0) == order(0)


def test_coco_trains_on_the_published_pairs(shared: Path) -> None:
    part = open_part("coco", shared / "data" / "coco", 3)
    corpus = build_corpus([part], "pairs")
    assert corpus.examples
    assert all("train2014" in str(example.item.image) for example in corpus.examples)
    assert {example.class_id for example in corpus.examples} <= set(fold_classes("coco", 3)[0])
