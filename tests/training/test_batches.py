"""Conversion of samples to tensors: targets, ignored pixels, and the prompts of each image."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusioner.data.masks import resize_mask
from fusioner.encoders.registry import build_image_encoder
from fusioner.errors import FusionerError
from fusioner.features.build import cache_features
from fusioner.features.dataset import LiveSource, TokenSource
from fusioner.prefetch import taken_ahead
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import Batch, DataLoader
from fusioner.training.dataset import Corpus, build_corpus, open_split
from fusioner.training.losses import iou_counts, miou
from fusioner.training.prompt_sampling import Vocabulary

SIZE = 16


@pytest.fixture(scope="module")
def unlabeled_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an image with the left half unlabeled (0) and the right half shoe (2); class 0 is called null."""
    root = tmp_path_factory.mktemp("unlabeled")
    for name in ("images", "masks"):
        (root / name).mkdir()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 2
    for i in range(4):
        Image.new("RGB", (SIZE, SIZE), (50 * i, 0, 99)).save(root / "images" / f"{i}.png")
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("null\nhat\nshoe\nbag\n")
    return root


def batches(corpus: Corpus, encoder: Any, sources: list[TokenSource] | None = None, **options: Any) -> DataLoader:
    vocabulary = Vocabulary(corpus.names())
    table = torch.nn.functional.normalize(torch.eye(len(vocabulary.words)), dim=1)
    live = sources or [LiveSource(split.data, encoder, 32) for split in corpus.splits]
    settings: dict[str, Any] = {"sampling": "images", "prompts": 3, "resolution": SIZE} | options
    return DataLoader(corpus, live, vocabulary, table, TrainConfig().override(**settings))


@pytest.fixture(scope="module")
def encoder(clip_folder: Path) -> Any:
    return build_image_encoder(f"clip-vit-b16@{clip_folder}")


def test_other_classes_are_negatives_and_unlabeled_pixels_are_ignored(unlabeled_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("folder", unlabeled_tree)], "images")
    made = batches(corpus, encoder)
    batch = made.build(corpus.samples, [(0, i) for i in range(4)], training=False)
    target, ignore = batch.target(), batch.ignore()
    assert batch.text.shape == (4, 3, 3)
    for row in range(4):
        assert sorted(batch.classes[row].tolist()) == [1, 2, 3]
        for place, class_id in enumerate(batch.classes[row].tolist()):
            assert ignore[row, place, :, : SIZE // 2].all()
            assert not ignore[row, place, :, SIZE // 2 :].any()
            assert (target[row, place, :, SIZE // 2 :] == float(class_id == 2)).all()
            name = corpus.splits[0].data.prompts[class_id]
            assert batch.text[row, place].argmax() == made.vocabulary.words.index(name)


def test_each_image_is_prompted_with_classes_of_its_own_data_set(
    voc_tree: Path, unlabeled_tree: Path, encoder: Any
) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree), open_split("folder", unlabeled_tree)], "images")
    made = batches(corpus, encoder, prompts=6, batch_size=28)
    for batch in [next(made.training_batches(0))]:
        for row, sample in enumerate(made.samples(0)):
            requested = batch.classes[row][~batch.padded[row]].tolist()
            first, end = corpus.class_offsets[sample.split : sample.split + 2]
            assert len(requested) == (6 if sample.split == 0 else 3)  # the folder has three classes
            assert all(first < class_id < end for class_id in requested)
            assert batch.ignore()[row][batch.padded[row]].all()


def test_the_unseen_classes_of_a_fold_are_background(voc_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree, 0)], "pairs")
    made = batches(corpus, encoder)
    samples = [sample for sample in corpus.samples if sample.class_id == 8][:6]
    batch = made.build(samples, [(0, i) for i in range(6)], training=False)
    for row, sample in enumerate(samples):
        mask = resize_mask(corpus.splits[0].data.read_mask(sample.item), (SIZE, SIZE))
        assert torch.equal(batch.target()[row, 0].bool(), torch.from_numpy(mask == 8))
        assert torch.equal(batch.ignore()[row, 0], torch.from_numpy(mask == 255))
        assert batch.labels[row].max() == 1


def test_a_hypernym_prompt_covers_all_its_classes(
    voc_tree: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusioner.training.prompt_sampling.HYPERNYM_PROBABILITY", 1.0)
    corpus = build_corpus([open_split("pascal", voc_tree, 1)], "images")  # cat, chair and cow are among 6 to 10
    split = corpus.splits[0]
    named = split.data.prompts
    groups = {"thing": [named[i] for i in (8, 12, 13)], "all": [named[i] for i in split.data.class_ids]}
    vocabulary = Vocabulary(corpus.names(), None, groups)
    table = torch.nn.functional.normalize(torch.eye(len(vocabulary.words)), dim=1)
    settings = TrainConfig().override(sampling="images", prompts=4, resolution=SIZE, batch_size=7)
    made = DataLoader(corpus, [LiveSource(split.data, encoder, 32)], vocabulary, table, settings)
    requested = 0
    for step in range(6):
        samples = made.samples(step)
        batch = made.build(samples, [(step, i) for i in range(7)], training=False)
        for row, sample in enumerate(samples):
            stored, claimed = split.data.read_mask(sample.item), set()
            mask, visible = resize_mask(stored, (SIZE, SIZE)), set(np.unique(stored).tolist())
            for place, class_id in enumerate(batch.classes[row][~batch.padded[row]].tolist()):
                word = int(batch.text[row, place].argmax())
                members = vocabulary.groups.get(word, {named[class_id]})
                group = {i for i in split.data.class_ids if named[i].casefold() in members}
                requested += len(group) > 1
                assert not group & claimed  # prompts are disjoint
                assert class_id in visible or not group & visible  # a negative word has no pixel of any of its classes
                claimed |= group
                unseen = np.isin(mask, [i for i in group if i not in split.classes])
                target = np.isin(mask, list(group)) & ~unseen & (mask != 255)
                assert torch.equal(batch.target()[row, place].bool(), torch.from_numpy(target))
                assert (batch.labels[row].numpy()[unseen] == -1).all()
    assert requested > 3


def test_frequent_classes_are_drawn_more_often_as_negatives(voc_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    shown = Counter(class_id for _, class_id in corpus.splits[0].data.pairs())
    requested = {balance: Counter[int]() for balance in (0.0, 1.0)}
    for balance, times in requested.items():
        built = batches(corpus, encoder, prompts=4, negative_frequency_power=balance)
        for step in range(60):
            sample = corpus.samples[step % len(corpus.samples)]
            mask = corpus.splits[0].data.read_mask(sample.item)
            _, ids, _ = built._prompt(sample, mask, np.random.default_rng(step))
            times.update(set(ids) - set(mask.flatten().tolist()))
    never = set(corpus.splits[0].classes) - shown.keys()
    common = {balance: sum(times[i] for i in shown) / times.total() for balance, times in requested.items()}
    assert never
    assert common[1.0] > 1.5 * common[0.0]
    assert all(sum(times[i] for i in never) for times in requested.values()), "absent classes are never drawn"


def test_cached_and_live_features_give_the_same_batches(voc_tree: Path, encoder: Any, tmp_path: Path) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    data = corpus.splits[0].data
    cached = cache_features(tmp_path, data, encoder, 32, views=3)
    live = LiveSource(data, encoder, 32, views=3)
    for step in range(3):
        first, second = (
            next(batches(corpus, encoder, [source], batch_size=8).training_batches(step)) for source in (cached, live)
        )
        assert (first.tokens - second.tokens).abs().max() < 1e-3  # fp16 of numbers below one
        for name in ("text", "labels", "classes", "padded"):
            assert torch.equal(getattr(first, name), getattr(second, name))


def test_cached_and_live_training_have_the_same_loss_curve(
    voc_tree: Path, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    import json

    from fusioner.training.train import train
    from fusioner.training.trainer import RunConfig

    curves = []
    for features in ("live", "cached"):
        config = tiny(steps=12, features=features, decoder_norm="layer")  # avoids gradients of pure noise
        run = RunConfig(tmp_path / features, device="cpu", cache=tmp_path / "cache")
        train([open_split("pascal", voc_tree)], config, run)
        lines = (tmp_path / features / "metrics.jsonl").read_text().splitlines()
        curves.append([line["loss"] for line in map(json.loads, lines) if "loss" in line])
    assert curves[0] == pytest.approx(curves[1], rel=2e-2)
    assert curves[0] != curves[1]  # the cache rounds to fp16


def test_mirrored_grids_keep_their_masks(voc_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "pairs")
    source = LiveSource(corpus.splits[0].data, encoder, 32, views=1)
    flipped = 0
    plain, mirrored = (
        next(batches(corpus, encoder, [source], horizontal_flip=flip, batch_size=12).training_batches(0))
        for flip in (False, True)
    )
    for row in range(12):
        is_mirrored = not torch.equal(mirrored.tokens[row], plain.tokens[row])
        flipped += is_mirrored
        assert torch.equal(mirrored.tokens[row], plain.tokens[row].flip(-1) if is_mirrored else plain.tokens[row])
        assert torch.equal(mirrored.labels[row], plain.labels[row].flip(-1) if is_mirrored else plain.labels[row])
    assert 0 < flipped < 12


def test_processes_share_the_batch(voc_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images", val_images=1)
    made = batches(corpus, encoder, batch_size=7)
    whole = next(made.training_batches(4))
    splits = [next(made.training_batches(4, rank, 2)) for rank in range(2)]
    for rank, split in enumerate(splits):
        assert torch.equal(split.labels, whole.labels[rank::2])
        assert torch.allclose(split.tokens, whole.tokens[rank::2], atol=1e-6)
    assert torch.equal(sum((split.counts() for split in splits), torch.zeros(2)), whole.counts())
    assert [len(batch.labels) for batch in made.held_out_batches()] == [1]


def test_microbatches_make_up_the_batch(voc_tree: Path, encoder: Any) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    whole = next(batches(corpus, encoder, batch_size=5).training_batches(0))
    pieces = whole.split(3)
    assert [len(piece.tokens) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), whole.labels)
    assert len(whole.split(99)) == 5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_masks_are_resized_by_the_pixel_under_each_centre(height: int, width: int, h: int, w: int) -> None:
    mask = np.arange(height * width).reshape(height, width)
    exact = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].double(), (h, w), mode="nearest-exact")
    ours = resize_mask(mask, (h, w))
    assert ours.shape == (h, w)
    assert np.array_equal(resize_mask(mask, (height, width)), mask)
    rows, columns = ours // width, ours % width
    assert np.abs(rows - (np.arange(h)[:, None] + 0.5) * height / h + 0.5).max() <= 0.5 + 1e-9
    assert np.abs(columns - (np.arange(w)[None] + 0.5) * width / w + 0.5).max() <= 0.5 + 1e-9
    assert (ours == exact[0, 0].numpy()).mean() > 0.5 or h * w < 4  # torch rounds ties in float32


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetched_batches_are_the_same(depth: int) -> None:
    def numbers() -> Iterator[Any]:
        yield from range(5)
        raise FusionerError("mask 5.png is broken")

    seen: list[Any] = []
    with pytest.raises(FusionerError, match="mask 5"):
        seen += [seen.append(number) for number in taken_ahead(numbers(), depth)]
    assert seen == [0, 1, 2, 3, 4]


def test_iou_counts_and_their_mean() -> None:
    labels = torch.tensor([[[1, 1, 0, -1], [2, 0, 0, -1]]], dtype=torch.int16)
    classes, padded = torch.tensor([[3, 5, 0]]), torch.tensor([[False, False, True]])
    batch = Batch(
        torch.zeros(1, 1, 1, 1),
        torch.zeros(1, 3, 2),
        labels,
        classes,
        padded,
        torch.tensor([-1]),
    )
    logits = torch.full((1, 3, 2, 4), -1.0)
    logits[0, 0, 0] = 1.0  # both target pixels, a background pixel and an ignored one
    logits[0, 2] = 1.0  # padding is not counted
    counts = iou_counts(logits, batch, 7)
    assert counts[3].tolist() == [2, 3, 2]
    assert counts[5].tolist() == [0, 0, 1]
    assert counts.sum() == 8
    assert miou(counts) == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert miou(torch.zeros(3, 3)) == 0
