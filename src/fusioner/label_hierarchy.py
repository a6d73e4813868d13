"""Words for groups, as "animal", read by the names of their members, too.

A model that remembers its classes by name knows a cow for a cow; that a cow is an animal, text vectors tell it badly.
So such a word is where it is found itself or where one of its members is. Beyond the paper; models without a memory
are asked for the word alone. Letters as in `base`.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float

from fusioner.backend import Array, ways
from fusioner.labels import read_word_lists
from fusioner.model.metadata import ModelCard

GROUPS = (
    "animal", "pet", "vehicle", "furniture", "tableware", "cutlery", "food", "vegetable", "sports equipment",
    "kitchen appliance", "electronic device",
)  # fmt: skip
"""Those that it is measured for (docs/accuracy.md). Words for garments and stuff are not among them: their members are
taught by sets that leave out whatever else there is, and claim what is none of theirs."""

BEHIND = 0.01  # logits by which a member speaks lower for its group than for itself, where both are asked for


def members_of(card: ModelCard) -> dict[str, tuple[str, ...]]:
    """Word for a group, in lower case -> those of its members that the model was taught and remembers."""
    if not card.config.memory:
        return {}
    taught = {word.casefold() for word in card.training.get("classes", ())}
    groups = read_word_lists("packaged", "hypernyms.json")
    known = {word: tuple(one for one in groups[word] if one.casefold() in taught) for word in GROUPS}
    return {word: some for word, some in known.items() if some}


def with_members(labels: Sequence[str], members: Mapping[str, Sequence[str]]) -> list[str]:
    """The labels, then what else has to be asked for: members of those that are words for groups, each once."""
    more = (one for label in labels for one in members.get(label.casefold(), ()))
    return list(dict.fromkeys([*labels, *more]))


def gather(
    logits: Float[Array, "n h w"], labels: Sequence[str], members: Mapping[str, Sequence[str]]
) -> Float[Array, "k h w"]:
    """Of those of `with_members(labels)` the logits of the labels; a group's are its own or a member's, the largest."""
    asked = with_members(labels, members)
    if len(asked) == len(labels):
        return logits
    do, row = ways(logits), {name: number for number, name in enumerate(asked)}
    planes = []
    for label in labels:
        theirs = [logits[row[one]] - BEHIND for one in members.get(label.casefold(), ())]
        planes.append(do.top(do.stack([logits[row[label]], *theirs])))
    return do.stack(planes)
