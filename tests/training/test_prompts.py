import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner.data.classes import COCO_CLASSES
from fusioner.errors import FusionerError
from fusioner.labels import read_word_lists
from fusioner.training.prompt_sampling import Vocabulary, draw_prompts


@given(
    present=st.sets(st.integers(1, 12)),
    tiny=st.sets(st.integers(1, 12)),
    classes=st.sets(st.integers(1, 15), min_size=1),
    count=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_half_present_the_rest_absent(
    present: set[int], tiny: set[int], classes: set[int], count: int, seed: int
) -> None:
    mask = np.array([[*sorted(present), 0, 255]])
    seen = np.array(sorted(present | tiny | {0, 255}))
    rng = np.random.default_rng(seed)
    drawn = draw_prompts(sorted(classes), mask, seen, count, rng)
    there, absent = classes & present, classes - present - tiny
    assert len(drawn) == len(set(drawn)) == min(count, len(there) + len(absent))
    assert set(drawn) <= there | absent  # never 0, 255, an unprompted class or a tiny one
    assert len(set(drawn) & there) <= max((count + 1) // 2, count - len(absent))
    if there:
        assert set(drawn) & there
    if len(absent) >= count // 2 and count > 1:
        assert len(set(drawn) & absent) >= count // 2
    assert drawn == draw_prompts(sorted(classes), mask, seen, count, np.random.default_rng(seed))


def test_every_class_is_drawn() -> None:
    mask, rng = np.array([[1, 2, 3]]), np.random.default_rng(0)
    drawn = [draw_prompts(range(1, 11), mask, mask[0], 2, rng) for _ in range(200)]
    assert {i for ids in drawn for i in ids} == set(range(1, 11))
    assert {ids[0] <= 3 for ids in drawn} == {True, False}  # the position of the present class varies


def test_synonyms_are_drawn_and_never_name_another_class() -> None:
    names = Vocabulary(["sofa", "cat", "tv"], {"SOFA": ["couch", "cat"], "cat": ["kitten", "pet"], "tv": ["pet"]})
    assert set(names.words) == {"sofa", "cat", "tv", "couch", "kitten"}
    rng = np.random.default_rng(0)
    assert {names.words[names.draw("sofa", rng)] for _ in range(50)} == {"sofa", "couch"}
    assert {names.words[names.draw("tv", rng)] for _ in range(50)} == {"tv"}


def test_packaged_synonyms_are_of_known_labels(tmp_path: Path) -> None:
    packaged = read_word_lists("packaged")
    pascal_words = {"dining table", "potted plant", "tv monitor", *("person", "sofa", "cat", "dog", "motorbike")}
    known = {word.casefold() for word in COCO_CLASSES} | pascal_words | {"aeroplane", "boat", "horse", "sheep"}
    assert set(packaged) - known == set()
    assert read_word_lists("") == {}


def test_packaged_groups_hold_known_labels() -> None:
    groups = read_word_lists("packaged", "hypernyms.json")
    labels = {"aeroplane", "motorbike", "sofa", "tv monitor", *(word.casefold() for word in COCO_CLASSES)}
    for word in ("animal", "vehicle", "furniture", "tableware", "sports equipment", "electronic device"):
        assert len(set(groups[word]) & labels) >= 3
    assert all(len(set(members)) == len(members) for members in groups.values())


def test_hypernyms_are_drawn_as_prompts() -> None:
    groups = {"animal": ["cat", "dog", "horse"], "pet": ["dog"], "x": ["y"]}
    names = Vocabulary(["cat", "Dog", "sofa"], {"cat": ["pet"]}, groups)
    (row,) = names.groups  # "pet" is a synonym already, "x" has no known label
    assert names.words[row] == "animal"
    assert names.groups[row] == {"cat", "dog", "horse"}
    rng = np.random.default_rng(0)
    drawn = [names.draw_hypernym("Dog", rng) for _ in range(400)]
    assert 0.1 < sum(ids == row for ids in drawn) / 400 < 0.2
    assert {names.draw_hypernym("sofa", rng) for _ in range(50)} == {None}


def test_weights_decide_which_absent_classes_are_drawn() -> None:
    mask, rng = np.array([[1]]), np.random.default_rng(0)
    weights = np.array([1.0, 30.0, 1.0, 1.0])
    drawn = [set(draw_prompts((1, 2, 3, 4), mask, mask[0], 2, rng, weights)) - {1} for _ in range(200)]
    assert all(len(absent) == 1 for absent in drawn)
    assert sum(absent == {2} for absent in drawn) > 170
    absent_only = draw_prompts((2, 3), mask, mask[0], 2, rng, weights[:2])
    assert sorted(absent_only) == [2, 3]


@pytest.mark.parametrize("content", ["[1]", "{", '{"cat": "kitten"}', '{"cat": [1]}', '{"cat": [" "]}'])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(FusionerError, match=r"names\.json"):
        read_word_lists(str(path))
    path.write_text(json.dumps({"cat": ["kitten"]}))
    assert read_word_lists(str(path)) == {"cat": ("kitten",)}
