"""Which names each image is prompted with; draws depend on the seed, the step and the place in the batch alone."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from numpy import ndarray

from fusioner.errors import FusionerError

Synonyms = dict[str, tuple[str, ...]]


def draw_prompts(
    classes: Sequence[int],
    mask: Integer[ndarray, "h w"],
    seen: Integer[ndarray, "n"],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Class ids to prompt one image with: up to half of `count` present, the others absent, in random order.

    Classes that fit only one of the two are taken beyond the half where the other kind runs out, so there are
    min(count, classes to choose from) prompts.

    Args:
        classes: ids that may be prompted.
        mask: the image's mask at the size of the loss; a class with a pixel here is present.
        seen: ids in the mask at full size; a class among them but not in `mask` is too small to be asked for.
    """
    shown, anywhere = set(np.unique(mask).tolist()), set(seen.tolist())
    present = [i for i in classes if i in shown]
    absent = [i for i in classes if i not in anywhere]
    wanted = max((count + 1) // 2, count - len(absent))
    chosen = rng.permutation(present)[:wanted].tolist()
    chosen += rng.permutation(absent)[: count - len(chosen)].tolist()
    return [int(i) for i in rng.permutation(chosen)]


class Names:
    """The words a class may be prompted with, as rows of one table of embeddings.

    Args:
        labels: every class's own words, each once.
        synonyms: further words by label (letter case does not matter); a word that is itself a label, or stands for
            two labels, is left out: it would teach that one class is another.
    """

    def __init__(self, labels: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None) -> None:
        others = {label.casefold(): words for label, words in (synonyms or {}).items()}
        own = {label.casefold() for label in labels}
        of = {label: [w for w in others.get(label.casefold(), ()) if w.casefold() not in own] for label in labels}
        taken = [word.casefold() for words in of.values() for word in set(words)]
        self.words: list[str] = list(labels)
        self.rows: dict[str, tuple[int, ...]] = {}
        for number, label in enumerate(labels):
            extra = [word for word in dict.fromkeys(of[label]) if taken.count(word.casefold()) == 1]
            self.rows[label] = (number, *range(len(self.words), len(self.words) + len(extra)))
            self.words += extra

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The row of a name for `label`: its own or a synonym's, all equally likely."""
        rows = self.rows[label]
        return rows[0] if len(rows) == 1 else rows[int(rng.integers(len(rows)))]


def read_synonyms(source: str) -> Synonyms:
    """Synonyms of a JSON file {label: [names]}; "packaged" is the list inside the package, "" is none.

    Raises:
        FusionerError: the file cannot be read or holds something else.
    """
    if not source:
        return {}
    path = Path(str(files("fusioner.data") / "synonyms.json")) if source == "packaged" else Path(source).expanduser()
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FusionerError(f"cannot read the synonyms in {path}: {reason}") from error
    well_formed = isinstance(content, dict) and all(
        isinstance(words, list) and all(isinstance(word, str) and word.strip() for word in words)
        for words in content.values()
    )
    if not well_formed:
        raise FusionerError(f'{path} must hold {{"label": ["another name", ...], ...}}')
    return {label: tuple(words) for label, words in content.items()}
