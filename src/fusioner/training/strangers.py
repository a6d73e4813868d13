"""Names of a training's other data sets as negatives: what one set labels *cat* is none of another's shoes.

A set's masks say nothing of names that it does not have, except where they say something else. Beyond the paper.
Letters: N names of all sets, h w loss size.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.training.dataset import Corpus

UNLIKE = 0.4
"""Cosine below which two names are taken to be of different things: a fork is none of a cat, but perhaps of a table."""
PEOPLE = frozenset(("person", "people", "human", "man", "woman", "child", "boy", "girl", "rider", "pedestrian"))
"""Their pixels show what they wear and carry, so they exclude no other set's names and are excluded by none."""


def exclusions(names: list[str], embeddings: Float[Tensor, "n d"]) -> Bool[ndarray, "n n"]:
    """Which names no pixel shows both of, as far as words tell.

    Args:
        embeddings: unit vectors of the names.
    """
    vectors = embeddings.cpu().numpy()
    people = np.array([name.casefold() in PEOPLE for name in names], bool)
    return (vectors @ vectors.T < UNLIKE) & ~people[:, None] & ~people[None, :]


class Stranger(NamedTuple):
    """A name that another set lends.

    Attributes:
        name: its word there; class_number: its class, numbered through all parts (`Corpus.offsets`).
        unknown: where an image's mask does not tell whether it is there: all but what is labelled as something unlike.
    """

    name: str
    class_number: int
    unknown: Bool[ndarray, "h w"]


class Strangers:
    """Draws names of other sets for an image, and tells where they are surely not.

    Args:
        embeddings: unit vectors of `corpus.names()`, in its order.
        count: names drawn for each image, where the other sets have so many.
    """

    def __init__(self, corpus: Corpus, embeddings: Float[Tensor, "n d"], count: int) -> None:
        self.count, self.parts = count, corpus.parts
        self._apart = exclusions(corpus.names(), embeddings)
        self._rows = {name: row for row, name in enumerate(corpus.names())}
        named = [
            (part.data.prompts[class_id], offset + class_id)
            for part, offset in zip(corpus.parts, corpus.offsets, strict=False)
            for class_id in part.classes
        ]
        own = [{part.data.prompts[class_id] for class_id in part.classes} for part in corpus.parts]
        self._others = [[one for one in named if one[0] not in words] for words in own]

    def draw(self, part: int, mask: Integer[ndarray, "h w"], rng: np.random.Generator) -> list[Stranger]:
        """Names to ask one image of a part for, by its mask at the size of the loss; all are equally likely."""
        others = self._others[part]
        drawn = [others[i] for i in rng.permutation(len(others))[: self.count]]
        return [Stranger(name, number, self._unknown(part, mask, name)) for name, number in drawn]

    def _unknown(self, number: int, mask: Integer[ndarray, "h w"], name: str) -> Bool[ndarray, "h w"]:
        part, apart = self.parts[number], self._apart[self._rows[name]]
        return ~np.isin(mask, [i for i in part.classes if apart[self._rows[part.data.prompts[i]]]])
