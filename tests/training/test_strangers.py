"""Names of other data sets as negatives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fusioner.encoders.registry import build_image_encoder
from fusioner.features.dataset import LiveSource
from fusioner.training.data_loader import Batches
from fusioner.training.dataset import Corpus, build_corpus, open_part
from fusioner.training.losses import choice, masked_bce
from fusioner.training.prompt_sampling import Names
from fusioner.training.strangers import UNLIKE, Strangers, exclusions

SIZE = 16
SETS = {
    "pets": ("background", "cat", "person", "wool"),
    "garments": ("null", "hat", "jumper"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two sets; masks in vertical stripes of all their values."""
    parts = []
    for name, classes in SETS.items():
        root = tmp_path_factory.mktemp(name)
        for folder in ("images", "masks"):
            (root / folder).mkdir()
        mask = np.repeat(np.arange(len(classes), dtype=np.uint8), SIZE)[None].repeat(SIZE, 0)
        for i in range(4):
            Image.new("RGB", mask.shape[::-1], (50 * i, 0, 99)).save(root / "images" / f"{name}{i}.png")
            Image.fromarray(mask).save(root / "masks" / f"{name}{i}.png")
        (root / "classes.txt").write_text("\n".join(classes))
        parts.append(open_part("folder", root))
    return build_corpus(parts, "images")


@pytest.fixture(scope="module")
def table(corpus: Corpus) -> Tensor:
    """Every name of its own, but a jumper is near to wool."""
    names, vectors = corpus.names(), torch.eye(len(corpus.names()))
    vectors[names.index("jumper")] += 0.7 * vectors[names.index("wool")]
    return torch.nn.functional.normalize(vectors, dim=1)


def batches(corpus: Corpus, table: Tensor, folder: Path, count: int) -> Batches:
    encoder: Any = build_image_encoder(f"clip-vit-b16@{folder}")
    sources = [LiveSource(part.data, encoder, 32) for part in corpus.parts]
    strangers = Strangers(corpus, table, count)
    return Batches(corpus, sources, Names(corpus.names()), table, 3, (SIZE, SIZE), 0, strangers=strangers)


@given(st.integers(0, 1000))
def test_names_exclude_each_other_both_ways_and_none_excludes_itself_or_people(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=g), dim=1)
    apart = exclusions(["a", "b", "Person", "c", "d", "child"], vectors)
    assert (apart == apart.T).all()
    assert not apart.diagonal().any()
    assert not apart[[2, 5]].any()
    others = [0, 1, 3, 4]
    assert (apart[np.ix_(others, others)] == (vectors @ vectors.T < UNLIKE).numpy()[np.ix_(others, others)]).all()


def test_an_image_is_asked_for_names_its_own_set_lacks(corpus: Corpus, table: Tensor) -> None:
    for part, count, lent in ((0, 5, {"hat", "jumper"}), (1, 2, 2), (1, 9, {"cat", "person", "wool"})):
        mask = np.zeros((SIZE, SIZE), int)
        words = [one.name for one in Strangers(corpus, table, count).draw(part, mask, np.random.default_rng(0))]
        assert len(words) == len(set(words))
        assert set(words) == lent if isinstance(lent, set) else len(words) == lent


def test_a_stranger_is_a_no_where_something_unlike_it_is_and_open_elsewhere(
    corpus: Corpus, table: Tensor, clip_folder: Path
) -> None:
    batch = batches(corpus, table, clip_folder, 2).build(corpus.examples[:1], [(0, 0)], training=False)
    names = [word for part in corpus.parts for word in part.data.classes]
    prompts = [names[i] for i in batch.classes[0].tolist()]
    assert sorted(prompts[:3]) == ["cat", "person", "wool"]
    assert sorted(prompts[3:]) == ["hat", "jumper"]
    assert not batch.target()[0, 3:].any()
    counts = ~batch.ignore()[0]
    background, cat, person, wool = (slice(4 * i, 4 * i + 4) for i in range(4))
    assert counts[:3].all()
    for name, known in (("hat", {1, 3}), ("jumper", {1})):
        mine = counts[prompts.index(name)]
        for number, stripe in enumerate((background, cat, person, wool)):
            assert (mine[:, stripe] == (number in known)).all(), (name, number)
    assert batch.counts().tolist() == [counts.sum(), SIZE * SIZE]


def test_what_nobody_knows_has_no_gradient(corpus: Corpus, table: Tensor, clip_folder: Path) -> None:
    batch = batches(corpus, table, clip_folder, 2).build(corpus.examples, [(0, i) for i in range(8)])
    logits = torch.zeros(8, batch.padded.shape[1], SIZE, SIZE, requires_grad=True)
    loss = masked_bce(logits, batch.target(), batch.ignore()) + choice(logits, batch.labels, batch.closed())
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[batch.ignore()].any()
    assert (logits.grad[~batch.ignore()] != 0).all()
