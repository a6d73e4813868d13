"""Test that group words are found where a member is, but never override a member that is also a label."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusioner
from fusioner.labels import (
    LabelHierarchy,
    cap_surfaces,
    find_indistinct,
    find_uncommon,
    head_noun,
    label_warnings,
)
from fusioner.postprocess import decide
from fusioner.segmenter import Segmenter

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
CLASSES = ["cat", "dog", "person", "car", "bus", "sofa", "glasses", "knife"]


@pytest.fixture(scope="module")
def hierarchy() -> LabelHierarchy:
    return LabelHierarchy(CLASSES)


def test_members_follow_the_labels_once(hierarchy: LabelHierarchy) -> None:
    assert hierarchy.expand(["tree", "Animal", "pet"]) == ["tree", "Animal", "pet", "cat", "dog"]
    assert hierarchy.expand(["cat", "animal"]) == ["cat", "animal", "dog"]
    assert hierarchy.expand(["sofa", "cat"]) == ["sofa", "cat"]


def test_a_hypernym_covers_all_its_members(hierarchy: LabelHierarchy) -> None:
    labels = ["cat", "animal", "sofa"]
    logits = np.array([[[3.0, -2.0, -2.0]], [[-1.0, -1.0, -1.0]], [[-4.0, -4.0, 1.0]], [[-3.0, 2.0, -3.0]]])  # + dog
    found = hierarchy.reduce(logits, labels)
    expected = [[3.0, -2.0, -2.0], [2.99, 1.99, -1.0], [-4.0, -4.0, 1.0]]
    np.testing.assert_allclose(np.asarray(found)[:, 0], expected, rtol=1e-6)
    probabilities = 1 / (1 + np.exp(-np.asarray(found)))
    assert np.asarray(decide(probabilities, 0.5)).tolist() == [[1, 2, 3]]  # cat for the cat, animal for the dog


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("man, woman, boy, girl, men, women, child, children, kid, rider, cyclist, people, crowd, chef", "person"),
        ("men on horses, a tennis player, old lady with an umbrella, group of tourists", "person"),
        ("cats, kitten, sleeping cat, cat on the sofa", "cat"),
        ("automobile, cars, van, police car", "car"),
        ("buses, double decker, red double-decker bus", "bus"),
        ("settee, couch, sofas", "sofa"),
        ("knives, bread knife", "knife"),
    ],
)
def test_hyponyms_synonyms_and_plurals_have_a_class(hierarchy: LabelHierarchy, words: str, name: str) -> None:
    labels = words.split(", ")
    assert {label: hierarchy.classes(label) for label in labels} == dict.fromkeys(labels, (name,))


@pytest.mark.parametrize("label", ["a cat", "The Cat", "two black cats", "small cat"])
def test_determiners_and_adjectives_do_not_count(hierarchy: LabelHierarchy, label: str) -> None:
    assert hierarchy.classes(label) == ("cat",)


@pytest.mark.parametrize(
    "label", ["cat", "Dog", "glasses", "bus", "animals", "wheel", "cat's head", "tabby", "red", "cable car", "street"]
)
def test_classes_and_unrelated_words_stand_for_themselves(hierarchy: LabelHierarchy, label: str) -> None:
    assert hierarchy.classes(label) == ()


def test_surfaces_are_behind_what_is_likelier_than_not_there() -> None:
    labels = ["the wet roads", "car", "traffic light", "sky"]
    logits = np.array([[[5.0, 5.0, 5.0]], [[2.0, -0.1, -6.0]], [[1.0, -3.0, -6.0]], [[-4.0, 3.0, 7.0]]])
    found = cap_surfaces(logits, labels)
    assert found.argmax(axis=0).tolist() == [[1, 0, 3]]
    np.testing.assert_allclose(found[0], [[1.99, 0.89, 5.0]])
    np.testing.assert_allclose(found[3], [[-4.0, 0.89, 7.0]])
    np.testing.assert_array_equal(found[1:3], logits[1:3])
    for names in (["road", "sky"], ["car", "street light"]):
        np.testing.assert_array_equal(cap_surfaces(logits[:2], names), logits[:2])


@given(
    st.lists(st.sampled_from(["road", "walls", "car", "cat", "sky"]), min_size=1, max_size=5, unique=True), st.data()
)
def test_surfaces_lose_to_likely_things_alone_and_keep_their_place_elsewhere(
    labels: list[str], drawn: st.DataObject
) -> None:
    values = drawn.draw(
        st.lists(
            st.lists(st.floats(-9, 9, width=16), min_size=6, max_size=6), min_size=len(labels), max_size=len(labels)
        )
    )
    logits = np.array(values, np.float32).reshape(len(labels), 2, 3)
    found = cap_surfaces(logits, labels)
    surface = np.array([label in ("road", "walls", "sky") for label in labels])
    np.testing.assert_array_equal(found[~surface], logits[~surface])
    assert (found <= logits).all()
    if surface.any() and not surface.all():
        before = logits[~surface].max(axis=0)
        assert (found[surface].max(axis=0) < before)[before >= 0].all()
        assert (found == logits)[:, before < -1].all()  # 9 is the highest logit here


def test_hyponyms_of_one_class_are_ordered_by_their_own_logits(hierarchy: LabelHierarchy) -> None:
    labels = ["man", "woman"]
    assert hierarchy.expand(labels) == [*labels, "person"]
    found = np.asarray(hierarchy.reduce(np.array([[[-3.0, -1.0]], [[-2.0, -4.0]], [[2.0, 2.0]]]), labels))
    assert found.argmax(axis=0).tolist() == [[1, 0]]
    assert (found > 1.5).all()  # nearly the logits of the person


def test_labels_that_differ_by_an_adjective_are_indistinct() -> None:
    assert find_indistinct(["red car", "cat", "the blue car"]) == [("red car", "the blue car")]
    assert find_indistinct(["man with a hat", "man on a horse", "wine bottle", "bottle"]) == [
        ("man with a hat", "man on a horse")
    ]
    assert head_noun("The big red") == "red"
    assert head_noun("two slices of the pizza on a plate") == "pizza"


def test_warnings_list_labels_that_cannot_be_found() -> None:
    assert label_warnings(["cat", "person", "traffic light", "armchair"]) == []
    assert "parts of things" in label_warnings(["wheel", "nose", "horse's head", "cat"])[0]
    parts = ["wheel", "noses", "horse\u2019s head", "car wheel", "left ear of the dog"]
    assert f"whole: {', '.join(parts)}" in label_warnings([*parts, "Ferris wheel", "vases", "horse", "chicken"])[0]
    assert label_warnings(["Katze", "cat"], missing=["Katze"]) == ["not found, and no common English words: Katze"]
    assert "English only: 猫, Bär" in label_warnings(["猫", "Bär"])[0]
    assert "cannot tell them apart" in label_warnings(["red car", "blue car"])[0]
    assert "separated by commas, so each of these is one label: cat; dog" in label_warnings(["cat; dog", "sofa"])[0]
    assert "negations are not understood, they find what they exclude: not cat" in label_warnings(["not cat", "No"])[0]


def test_words_of_other_languages_are_uncommon() -> None:
    foreign = ["Katze", "Fahrrad", "Stuhl", "Regenschirm", "oiseau", "bouteille", "perro", "ventana", "bicicleta"]
    assert find_uncommon(foreign) == foreign
    english = ["cat", "policemen", "houseplants", "a/c", "red cars", "hair drier", "cyclists", "knives", "8", "T-shirt"]
    assert find_uncommon(english) == []


def test_only_models_with_a_closed_set_head_relate_labels(make_tiny_segmenter: Callable[..., Segmenter]) -> None:
    segmenter = make_tiny_segmenter()
    segmenter.card = replace(segmenter.card, training={"classes": ["Cat", "sofa", "boots"]})
    assert isinstance(segmenter.hierarchy, LabelHierarchy)
    assert segmenter.hierarchy.members("animal") == segmenter.hierarchy.classes("cats") == ()
    hierarchy = LabelHierarchy(["Cat", "sofa", "boots"])
    assert [hierarchy.members(word) for word in ("animal", "pet", "furniture")] == [("Cat",), ("Cat",), ("sofa",)]


def test_the_bundled_model_finds_a_cat_as_an_animal() -> None:
    segmenter = fusioner.load(device="cpu")
    for mode in ("whole", "slide"):
        segmenter.set_image(SAMPLES / "chelsea.jpg", mode=mode)
        cat, animal, both = (segmenter.segment(labels) for labels in (["cat"], ["animal"], ["animal", "cat"]))
        cat_mask, animal_mask = cat.mask("cat"), animal.mask("animal")
        assert (cat_mask & animal_mask).sum() > 0.97 * (cat_mask | animal_mask).sum()
        assert both.mask("cat").sum() > 0.97 * cat_mask.sum()
