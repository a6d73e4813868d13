"""Class lists in every supported format."""

from pathlib import Path

import pytest

from fusioner.data.classes import prompt_of, read_class_names
from fusioner.errors import FusionerError


def write(root: Path, name: str, text: str) -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "\ufeffbackground\ncat\n\nsofa\n\n"),
        ("classes.json", '["background", "cat", "", "sofa"]'),
        ("classes.json", '{"0": "background", "1": "cat", "3": "sofa"}'),
        ("classes.json", '{"background": 0, "cat": 1, "sofa": 3}'),
        ("classes.yaml", "- background\n- cat\n- ''\n- sofa\n"),
        ("classes.yaml", "train: {images: x}\nclasses:\n  0: background\n  1: cat\n  3: sofa\n"),
        ("classes.yml", "names: {background: 0, cat: 1, sofa: 3}"),
    ],
)
def test_every_shape_gives_the_same_names(tmp_path: Path, name: str, text: str):
    assert read_class_names(write(tmp_path, name, text)) == {0: "background", 1: "cat", 3: "sofa"}


@pytest.mark.parametrize(("name", "text"), [("classes.yaml", "{0: null, 1: cat}"), ("classes.json", '[null, "cat"]')])
def test_a_bare_null_is_the_name_null(tmp_path: Path, name: str, text: str):
    assert read_class_names(write(tmp_path, name, text)) == {0: "null", 1: "cat"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("other.txt", "", "no classes.txt"),
        ("classes.txt", "\n\n", "names no class"),
        ("classes.txt", "background\ncat\nCat\n", "'Cat' to both 1 and 2"),
        ("classes.json", '{"a": ', "cannot read"),
        ("classes.yaml", "a: [1, 2", "cannot read"),
        ("classes.yaml", "7", "must hold a list"),
        ("classes.json", '{"cat": -1}', "outside 0..65534"),
        ("classes.json", '{"cat": 65535}', "outside 0..65534"),
    ],
)
def test_a_broken_list_is_one_sentence_that_names_the_file(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(FusionerError, match=message) as caught:
        read_class_names(write(tmp_path, name, text))
    assert str(tmp_path) in str(caught.value)


def test_prompts_are_cleaned_class_names():
    names = ("sky-other-merged", "tree-merged", "door-stuff", "teddy_bear", "t-shirt", "diningtable")
    assert [prompt_of(n) for n in names] == ["sky", "tree", "door", "teddy bear", "t-shirt", "dining table"]
