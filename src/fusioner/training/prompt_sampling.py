"""Random choice of the classes and words that each image is prompted with."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

HYPERNYM_PROBABILITY = 0.15
"""Probability that a class with a hypernym is prompted by it."""


def draw_prompts(
    classes: Sequence[int],
    mask: Integer[ndarray, "h w"],
    visible: Integer[ndarray, "v"],
    count: int,
    rng: np.random.Generator,
    weights: Float[ndarray, "c"] | None = None,
) -> list[int]:
    """Draw class ids to prompt one image with: up to half of `count` present, the others absent, in random order.

    If one kind runs out, more of the other are drawn, so there are min(count, available classes) prompts.

    Args:
        mask: the image's mask at loss resolution; a class with a pixel here is present.
        visible: ids in the full-size mask; a class among them but not in `mask` is too small to be prompted.
        weights: relative probability of each of `classes` as an absent one; None: uniform.
    """
    shown, anywhere = set(np.unique(mask).tolist()), set(visible.tolist())
    present = [i for i in classes if i in shown]
    absent = [i for i in classes if i not in anywhere]
    wanted = max((count + 1) // 2, count - len(absent))
    prompts = rng.permutation(present)[:wanted].tolist()
    room = min(len(absent), count - len(prompts))
    if weights is None or not prompts or not room:
        prompts += rng.permutation(absent)[:room].tolist()
    else:
        row = {class_id: number for number, class_id in enumerate(classes)}
        chances = weights[[row[i] for i in absent]]
        prompts += rng.choice(absent, room, replace=False, p=chances / chances.sum()).tolist()
    return [int(i) for i in rng.permutation(prompts)]


class Vocabulary:
    """The words a class may be prompted with, as rows of one table of embeddings.

    Args:
        labels: every class's name, each once.
        synonyms: further words by label (case-insensitive). Words that are also a label, or a synonym of two labels,
            are dropped, because they would teach that one class is another.
        hypernyms: words for groups of labels, such as "animal". Those that are also a label or a synonym are dropped.
    """

    def __init__(
        self,
        labels: Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        hypernyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        by_label = {label.casefold(): words for label, words in (synonyms or {}).items()}
        names = {label.casefold() for label in labels}
        extra = {
            label: [word for word in by_label.get(label.casefold(), ()) if word.casefold() not in names]
            for label in labels
        }
        used = [word.casefold() for words in extra.values() for word in set(words)]
        self.words: list[str] = list(labels)  # in the order of the table's rows; the labels come first
        self.rows: dict[str, tuple[int, ...]] = {}  # of each label's words
        for number, label in enumerate(labels):
            unique = [word for word in dict.fromkeys(extra[label]) if used.count(word.casefold()) == 1]
            self.rows[label] = (number, *range(len(self.words), len(self.words) + len(unique)))
            self.words += unique
        self.groups: dict[int, frozenset[str]] = {}  # row of a hypernym -> its labels, in lower case
        for word, members in (hypernyms or {}).items():
            group = frozenset(member.casefold() for member in members)
            if group & names and word.casefold() not in {known.casefold() for known in self.words}:
                self.groups[len(self.words)] = group
                self.words.append(word)

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """Draw the row of the label or one of its synonyms, all equally likely."""
        rows = self.rows[label]
        return rows[0] if len(rows) == 1 else rows[int(rng.integers(len(rows)))]

    def draw_hypernym(self, label: str, rng: np.random.Generator) -> int | None:
        """Draw the row of one of the label's hypernyms with probability `HYPERNYM_PROBABILITY`, else None."""
        rows = [row for row, group in self.groups.items() if label.casefold() in group]
        return rows[int(rng.integers(len(rows)))] if rows and rng.random() < HYPERNYM_PROBABILITY else None
