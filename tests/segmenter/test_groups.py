"""Words for groups: found where a member is, never above a member that is asked for by its own name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fusioner
from fusioner.label_hierarchy import gather, members_of, with_members
from fusioner.postprocess import decide
from fusioner.segmenter import Segmenter

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MEMBERS = {"animal": ("cat", "dog"), "pet": ("cat",)}


def test_members_are_asked_for_once_and_after_the_labels() -> None:
    assert with_members(["sofa", "Animal", "pet"], MEMBERS) == ["sofa", "Animal", "pet", "cat", "dog"]
    assert with_members(["cat", "animal"], MEMBERS) == ["cat", "animal", "dog"]
    assert with_members(["sofa", "cat"], MEMBERS) == ["sofa", "cat"]


@pytest.mark.parametrize("library", [torch.tensor, np.array])
def test_a_group_is_where_any_of_its_members_is(library: Callable[..., torch.Tensor]) -> None:
    labels = ["cat", "animal", "sofa"]
    logits = library([[[3.0, -2.0, -2.0]], [[-1.0, -1.0, -1.0]], [[-4.0, -4.0, 1.0]], [[-3.0, 2.0, -3.0]]])  # + dog
    found = gather(logits, labels, MEMBERS)
    expected = [[3.0, -2.0, -2.0], [2.99, 1.99, -1.0], [-4.0, -4.0, 1.0]]
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, rtol=1e-6)
    likely = 1 / (1 + np.exp(-np.asarray(found)))
    assert np.asarray(decide(likely, 0.5)).tolist() == [[1, 2, 3]]  # the cat is a cat, the dog an animal


def test_only_what_was_taught_is_a_member_and_only_where_there_is_a_memory(tiny_segmenter: Segmenter) -> None:
    card = replace(tiny_segmenter.card, training={"classes": ["Cat", "sofa", "boots"]})
    assert members_of(card) == {}
    shape = replace(card.config, similarity="posterior", aligned_dim=5, memory=2)
    known = members_of(replace(card, config=shape))
    assert known == {"animal": ("cat",), "pet": ("cat",), "furniture": ("sofa",)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_default_knows_a_cat_for_an_animal(mode: str) -> None:
    segmenter = fusioner.load()
    cat, animal, both = (
        segmenter(SAMPLES / "chelsea.jpg", labels, mode=mode)  # pyright: ignore[reportArgumentType]
        for labels in (["cat"], ["animal"], ["animal", "cat"])
    )
    here, there = cat.mask("cat"), animal.mask("animal")
    assert (here & there).sum() > 0.97 * (here | there).sum()
    assert both.mask("cat").sum() > 0.97 * here.sum()
