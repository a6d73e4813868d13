"""The thousand ImageNet classes in words, and their embeddings: the bridge from a classifier's posterior to text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ClassName:
    """One ImageNet class: its WordNet id, its synonyms (the first is the commonest) and WordNet's definition."""

    synset: str
    synonyms: tuple[str, ...]
    definition: str


# How a class may be written; several strings are embedded each, and their unit embeddings averaged.
ANCHOR_VARIANTS: dict[str, Callable[[ClassName], list[str]]] = {
    "first": lambda one: [one.synonyms[0]],
    "synonyms": lambda one: list(one.synonyms),
    "joined": lambda one: [", ".join(one.synonyms)],
    "defined": lambda one: [f"{one.synonyms[0]}: {one.definition}"],
    "photo": lambda one: [f"a photo of a {synonym}." for synonym in one.synonyms],
}


def parse_names(text: str) -> list[ClassName]:
    """Read `imagenet_names.tsv`: a line a class, in the classifier's order."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [ClassName(synset, tuple(synonyms.split(", ")), definition) for synset, synonyms, definition in rows]


def anchor_embeddings(
    encoder: Callable[[Sequence[str]], Float[Tensor, "n d"]], classes: Sequence[ClassName], variant: str
) -> Float[Tensor, "k d"]:
    """One unit vector a class: the mean of the unit embeddings of its strings in this variant (`ANCHOR_VARIANTS`)."""
    strings = [ANCHOR_VARIANTS[variant](one) for one in classes]
    flat = encoder([string for group in strings for string in group])
    means = [part.mean(dim=0) for part in flat.split([len(group) for group in strings])]
    return F.normalize(torch.stack(means), dim=-1)
