"""The thousand ImageNet classes in words, and their embeddings: the bridge from a classifier's posterior to text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ClassName:
    """One ImageNet class: its WordNet id, its synonyms (the first is the commonest) and WordNet's definition."""

    synset: str
    synonyms: tuple[str, ...]
    definition: str


PEOPLE = frozenset({"n09835506", "n10148035", "n10565667"})
"""The three of the thousand that are people: ballplayer, groom, scuba diver."""
_WORN = re.compile(
    r"\b(worn|garment|undergarment|dress|skirt|trousers|robe|gown|pullover|knitted jacket|swimsuit|bathing suit|"
    r"nightclothes|uniform|raincoat|hat|helmet|mask|scarf|vest|body armor|tie|spectacles|hairpiece)\b"
)


def shown_on(one: ClassName) -> list[str]:
    """What a picture of a garment shows beside it: ImageNet names no people, but somebody wears its clothes."""
    if one.synset in PEOPLE:
        return [f"a person, {one.synonyms[0]}"]
    return [f"a person wearing a {one.synonyms[0]}"] if _WORN.search(one.definition) else []


# How a class may be written; several strings are embedded each, and their unit embeddings averaged.
ANCHOR_VARIANTS: dict[str, Callable[[ClassName], list[str]]] = {
    "first": lambda one: [one.synonyms[0]],
    "synonyms": lambda one: list(one.synonyms),
    "joined": lambda one: [", ".join(one.synonyms)],
    "defined": lambda one: [f"{one.synonyms[0]}: {one.definition}"],
    "photo": lambda one: [f"a photo of a {synonym}." for synonym in one.synonyms],
    "worn": shown_on,
}


def parse_names(text: str) -> list[ClassName]:
    """Read `imagenet_names.tsv`: a line a class, in the classifier's order."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [ClassName(synset, tuple(synonyms.split(", ")), definition) for synset, synonyms, definition in rows]


@dataclass(frozen=True)
class Kind:
    """A wider kind of some classes, WordNet's hypernym: and the rows of the classes below it."""

    name: ClassName
    below: tuple[int, ...]


def parse_kinds(text: str) -> list[Kind]:
    """Read `imagenet_kinds.tsv`: the columns of `imagenet_names.tsv`, then rows with commas between them."""
    kinds = []
    for line in text.splitlines():
        name, _, below = line.rpartition("\t")
        kinds.append(Kind(parse_names(name)[0], tuple(int(row) for row in below.split(","))))
    return kinds


def kind_embeddings(
    encoder: Callable[[Sequence[str]], Float[Tensor, "n d"]], kinds: Sequence[Kind]
) -> Float[Tensor, "k d"]:
    """One unit vector a kind: of its synonyms and, as much again, of the first with its definition."""
    names = [kind.name for kind in kinds]
    synonyms, defined = (anchor_embeddings(encoder, names, way) for way in ("synonyms", "defined"))
    return F.normalize(synonyms + defined, dim=-1)


def kinds_above(kinds: Sequence[Kind], classes: int) -> Int[Tensor, "k depth"]:
    """For each class the kinds it is below, then the number of kinds up to the most that a class has."""
    above: list[list[int]] = [[] for _ in range(classes)]
    for number, kind in enumerate(kinds):
        for row in kind.below:
            above[row].append(number)
    depth = max(map(len, above))
    return torch.tensor([one + [len(kinds)] * (depth - len(one)) for one in above])


def anchor_embeddings(
    encoder: Callable[[Sequence[str]], Float[Tensor, "n d"]], classes: Sequence[ClassName], variant: str
) -> Float[Tensor, "k d"]:
    """One unit vector a class: the mean of the unit embeddings of its strings in this variant (`ANCHOR_VARIANTS`).

    Zero where the variant has nothing to say of a class.
    """
    strings = [ANCHOR_VARIANTS[variant](one) for one in classes]
    flat = encoder([string for group in strings for string in group])
    sums = [part.sum(dim=0) for part in flat.split([len(group) for group in strings])]
    return F.normalize(torch.stack(sums), dim=-1)
