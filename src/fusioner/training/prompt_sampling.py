"""Which names each image is prompted with; draws depend on the seed, the step and the place in the batch alone."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer
from numpy import ndarray

WIDER = 0.15  # chance that a prompt is the word for a group of classes, where its class is in one


def draw_prompts(
    classes: Sequence[int],
    mask: Integer[ndarray, "h w"],
    seen: Integer[ndarray, "n"],
    count: int,
    rng: np.random.Generator,
    pull: Float[ndarray, "n n"] | None = None,
) -> list[int]:
    """Class ids to prompt one image with: up to half of `count` present, the others absent, in random order.

    Classes that fit only one of the two are taken beyond the half where the other kind runs out, so there are
    min(count, classes to choose from) prompts.

    Args:
        classes: ids that may be prompted.
        mask: the image's mask at the size of the loss; a class with a pixel here is present.
        seen: ids in the mask at full size; a class among them but not in `mask` is too small to be asked for.
        pull: how likely an absent class (column) is beside a present one (row), both as in `classes`, up to a factor;
            the strongest pull of those prompted counts. None: all absent ones are equally likely.
    """
    shown, anywhere = set(np.unique(mask).tolist()), set(seen.tolist())
    present = [i for i in classes if i in shown]
    absent = [i for i in classes if i not in anywhere]
    wanted = max((count + 1) // 2, count - len(absent))
    chosen = rng.permutation(present)[:wanted].tolist()
    room = min(len(absent), count - len(chosen))
    if pull is None or not chosen or not room:
        chosen += rng.permutation(absent)[:room].tolist()
    else:
        place = {class_id: row for row, class_id in enumerate(classes)}
        chances = pull[np.ix_([place[i] for i in chosen], [place[i] for i in absent])].max(axis=0)
        chosen += rng.choice(absent, room, replace=False, p=chances / chances.sum()).tolist()
    return [int(i) for i in rng.permutation(chosen)]


class Names:
    """The words a class may be prompted with, as rows of one table of embeddings.

    Args:
        labels: every class's own words, each once.
        synonyms: further words by label (letter case does not matter); a word that is itself a label, or stands for
            two labels, is left out: it would teach that one class is another.
        hypernyms: words for groups of labels, as "animal"; one that is itself a label or a synonym is left out.
    """

    def __init__(
        self,
        labels: Sequence[str],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        hypernyms: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
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
        self.groups: dict[int, frozenset[str]] = {}
        for word, members in (hypernyms or {}).items():
            group = frozenset(member.casefold() for member in members)
            if group & own and word.casefold() not in {one.casefold() for one in self.words}:
                self.groups[len(self.words)] = group
                self.words.append(word)

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The row of a name for `label`: its own or a synonym's, all equally likely."""
        rows = self.rows[label]
        return rows[0] if len(rows) == 1 else rows[int(rng.integers(len(rows)))]

    def widen(self, label: str, rng: np.random.Generator) -> int | None:
        """Now and then the row of a word for a group that `label` is in (`groups` has its labels, in lower case)."""
        rows = [row for row, group in self.groups.items() if label.casefold() in group]
        return rows[int(rng.integers(len(rows)))] if rows and rng.random() < WIDER else None
