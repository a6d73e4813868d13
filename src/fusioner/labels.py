"""Parse and check labels; find hypernyms by their members."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fusioner.errors import FusionerError

MAX_LABELS = 65_535  # of a 16-bit mask


def parse_labels(text: str) -> list[str]:
    """Split a string at commas and line breaks: `"cat, sofa"` -> `["cat", "sofa"]`.

    Raises:
        FusionerError: a label is empty or occurs twice.
    """
    return check_labels(text.replace("\n", ",").split(","))


def read_labels(path: str | Path) -> list[str]:
    """Read the labels of a UTF-8 text file, one per line (a label may contain commas); blank lines are skipped.

    Raises:
        FusionerError: the file cannot be read, has no labels, or has one twice.
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
        FusionerError: there is no label, an empty one, a duplicate (ignoring case), or too many.
    """
    if isinstance(labels, str):
        return parse_labels(labels)
    if not all(isinstance(label, str) for label in labels):
        raise FusionerError("labels must be strings")
    clean = [" ".join(label.split()) for label in labels]
    if not any(clean):
        raise FusionerError("there are no labels: give at least one")
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


HYPERNYMS = (
    "animal", "pet", "vehicle", "furniture", "tableware", "cutlery", "food", "vegetable", "sports equipment",
    "kitchen appliance", "electronic device",
)  # fmt: skip
"""Hypernyms that are also found by their members' names, as measured in docs/accuracy.md. Garments and stuff are not
among them: data sets of those annotate few other classes, so their classes produce false positives."""
HYPERNYM_MARGIN = 0.01  # logits that a member loses when it stands for its hypernym


def find_members(classes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Map hypernyms in lower case to those of their members that are among the trained `classes`."""
    trained = {name.casefold() for name in classes}
    table = read_word_lists("packaged", "hypernyms.json")
    members = {word: tuple(name for name in table[word] if name.casefold() in trained) for word in HYPERNYMS}
    return {word: names for word, names in members.items() if names}


def expand_hypernyms(labels: Sequence[str], members: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the labels, followed by the members of those that are hypernyms, each once."""
    added = (name for label in labels for name in members.get(label.casefold(), ()))
    return list(dict.fromkeys([*labels, *added]))


def reduce_hypernyms(
    logits: Float[np.ndarray, "n h w"], labels: Sequence[str], members: Mapping[str, Sequence[str]]
) -> Float[np.ndarray, "k h w"]:
    """Reduce the logits of `expand_hypernyms(labels)` to the labels: a hypernym takes the maximum over its members."""
    names = expand_hypernyms(labels, members)
    if len(names) == len(labels):
        return logits
    row, planes = {name: number for number, name in enumerate(names)}, []
    for label in labels:
        below = [logits[row[name]] - HYPERNYM_MARGIN for name in members.get(label.casefold(), ())]
        planes.append(np.max([logits[row[label]], *below], axis=0))
    return np.stack(planes)
