"""Further words for labels: synonyms, and words for groups."""

import json
from importlib.resources import files
from pathlib import Path

from fusioner.errors import FusionerError

Words = dict[str, tuple[str, ...]]


def read_words(source: str, packaged: str = "synonyms.json") -> Words:
    """A JSON file {word: [words]}: synonyms by label, or the labels of a group by its hypernym.

    Args:
        source: the file; "packaged" is the one of that name inside the package, "" is none.

    Raises:
        FusionerError: the file cannot be read or holds something else.
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
