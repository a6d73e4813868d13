"""What the user wants to find: from typed text to a clean list of labels."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fusioner.errors import FusionerError

MAX_LABELS = 65_535  # what a 16-bit mask can number


def parse_labels(text: str) -> list[str]:
    """`"cat, sofa"` -> `["cat", "sofa"]`; commas and line breaks separate.

    Raises:
        FusionerError: a label is empty or named twice.
    """
    return check_labels(text.replace("\n", ",").split(","))


def read_labels(path: str | Path) -> list[str]:
    """Labels of a UTF-8 text file, one a line (so that a label may hold commas); blank lines do not count.

    Raises:
        FusionerError: the file cannot be read, has no labels, or names one twice.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise FusionerError(f"cannot read labels from {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FusionerError(f"labels file {path} is not UTF-8 text: save it as UTF-8") from error
    try:
        return check_labels([line for line in lines if line.strip()])
    except FusionerError as error:
        raise FusionerError(f"labels file {path}: {error}") from error


def check_labels(labels: Sequence[str] | str) -> list[str]:
    """Strip and check labels; a single string is parsed as by `parse_labels`.

    Raises:
        FusionerError: none at all, an empty one, one named twice (upper and lower case are one), or too many.
    """
    if isinstance(labels, str):
        return parse_labels(labels)
    if not all(isinstance(label, str) for label in labels):
        raise FusionerError("labels are words: give a list of strings")
    clean = [" ".join(label.split()) for label in labels]
    if not any(clean):
        raise FusionerError("there are no labels: name at least one thing to look for")
    if len(clean) > MAX_LABELS:
        raise FusionerError(f"{len(clean)} labels are over the limit of {MAX_LABELS}")
    seen: dict[str, int] = {}
    for number, label in enumerate(clean, start=1):
        if not label:
            raise FusionerError(f"label {number} of {len(clean)} is empty: remove the stray comma")
        first = seen.setdefault(label.casefold(), number)
        if first != number:
            raise FusionerError(f"label '{label}' is named twice (labels {first} and {number}): remove one")
    return clean


def read_word_lists(source: str, packaged: str = "synonyms.json") -> dict[str, tuple[str, ...]]:
    """Read a JSON file {word: [words]}: the synonyms of labels, or the labels of a hypernym.

    Args:
        source: path of the file; "packaged" reads `packaged` from the package; "" gives an empty mapping.

    Raises:
        FusionerError: the file cannot be read or has another structure.
    """
    if not source:
        return {}
    path = Path(str(files("fusioner.data") / packaged)) if source == "packaged" else Path(source).expanduser()
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FusionerError(f"cannot read the words in {path}: {reason}") from error
    well_formed = isinstance(content, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
        for words in content.values()
    )
    if not well_formed:
        raise FusionerError(f'{path} must hold {{"label": ["another name", ...], ...}}')
    return {label: tuple(words) for label, words in content.items()}
