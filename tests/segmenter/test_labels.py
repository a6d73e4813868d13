"""Parsing of labels into a clean list or one error message."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusioner.errors import FusionerError
from fusioner.labels import MAX_LABELS, check_labels, parse_labels, read_labels


def test_parsing() -> None:
    assert parse_labels(" cat,  dining \t table ,Sofa") == ["cat", "dining table", "Sofa"]
    assert parse_labels("cat\nsofa") == ["cat", "sofa"]
    assert check_labels("cat, sofa") == ["cat", "sofa"]
    assert check_labels(word for word in ("cat", "sofa")) == ["cat", "sofa"]
    assert check_labels(("кошка", "猫", "قطة", "🐈")) == ["кошка", "猫", "قطة", "🐈"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no labels"),
        (" , ,", "no labels"),
        ("cat,,sofa", "label 2 of 3 is empty"),
        ("cat,", "label 2 of 2 is empty"),
        ("cat, dog, Cat", r"'Cat' is named twice \(labels 1 and 3\)"),
        ("straße, STRASSE", "named twice"),
    ],
)
def test_bad_lists(text: str, reason: str) -> None:
    with pytest.raises(FusionerError, match=reason):
        parse_labels(text)


def test_bad_sequences() -> None:
    with pytest.raises(FusionerError, match="no labels"):
        check_labels([])
    for wrong in (["cat", 3], None, 3):
        with pytest.raises(FusionerError, match="labels must be strings"):
            check_labels(wrong)  # type: ignore[arg-type]
    with pytest.raises(FusionerError, match="over the limit of 65535"):
        check_labels([str(i) for i in range(MAX_LABELS + 1)])


def test_five_hundred_labels_are_fine() -> None:
    assert len(check_labels([f"thing {i}" for i in range(500)])) == 500


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffcat\r\n\r\nsalt, and pepper\r\n  猫 \r\n".encode())
    assert read_labels(path) == ["cat", "salt, and pepper", "猫"]
    path.write_bytes("café".encode("latin-1"))
    with pytest.raises(FusionerError, match="is not UTF-8"):
        read_labels(path)
    path.write_text("\n\n")
    with pytest.raises(FusionerError, match=r"labels\.txt: there are no labels"):
        read_labels(path)
    with pytest.raises(FusionerError, match="cannot read labels from"):
        read_labels(tmp_path / "none.txt")
    with pytest.raises(FusionerError, match="cannot read labels from"):
        read_labels(tmp_path)


@given(st.lists(st.text(st.characters(exclude_characters=","), min_size=1), max_size=8))
def test_parsing_is_idempotent(labels: list[str]) -> None:
    try:
        clean = check_labels(labels)
    except FusionerError:
        return
    assert check_labels(clean) == clean
    assert parse_labels(",".join(clean)) == clean
