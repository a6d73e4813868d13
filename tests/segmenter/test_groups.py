"""Words for groups: found where a member is, never above a member that is asked for by its own name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fusioner
from fusioner.labels import expand_hypernyms, find_members, reduce_hypernyms
from fusioner.postprocess import decide
from fusioner.segmenter import Segmenter

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
MEMBERS = {"animal": ("cat", "dog"), "pet": ("cat",)}


def test_members_are_asked_for_once_and_after_the_labels() -> None:
    assert expand_hypernyms(["sofa", "Animal", "pet"], MEMBERS) == ["sofa", "Animal", "pet", "cat", "dog"]
    assert expand_hypernyms(["cat", "animal"], MEMBERS) == ["cat", "animal", "dog"]
    assert expand_hypernyms(["sofa", "cat"], MEMBERS) == ["sofa", "cat"]


def test_a_group_is_where_any_of_its_members_is() -> None:
    labels = ["cat", "animal", "sofa"]
    logits = np.array([[[3.0, -2.0, -2.0]], [[-1.0, -1.0, -1.0]], [[-4.0, -4.0, 1.0]], [[-3.0, 2.0, -3.0]]])  # + dog
    found = reduce_hypernyms(logits, labels, MEMBERS)
    expected = [[3.0, -2.0, -2.0], [2.99, 1.99, -1.0], [-4.0, -4.0, 1.0]]
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, rtol=1e-6)
    likely = 1 / (1 + np.exp(-np.asarray(found)))
    assert np.asarray(decide(likely, 0.5)).tolist() == [[1, 2, 3]]  # the cat is a cat, the dog an animal


def test_only_trained_classes_are_members_and_only_with_a_closed_set_head(
    make_tiny_segmenter: Callable[..., Segmenter],
) -> None:
    segmenter = make_tiny_segmenter()
    segmenter.card = replace(segmenter.card, training={"classes": ["Cat", "sofa", "boots"]})
    assert segmenter.members == {}
    assert find_members(["Cat", "sofa", "boots"]) == {"animal": ("cat",), "pet": ("cat",), "furniture": ("sofa",)}


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
