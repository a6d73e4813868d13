"""Parse and check labels; find hypernyms, hyponyms and inflected words by the trained classes."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fusioner.errors import FusionerError
from fusioner.io import parse_file
from fusioner.weights import weights_file

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
    lines = parse_file(path, str.splitlines, "labels from ")
    try:
        return check_labels([line for line in lines if line.strip()])
    except FusionerError as error:
        raise FusionerError(f"labels file {path}: {error}") from error


def check_labels(labels: Iterable[str] | str) -> list[str]:
    """Strip and check labels; a single string is parsed as by `parse_labels`.

    Raises:
        FusionerError: there is no label, an empty one, a duplicate (ignoring case), or too many.
    """
    if isinstance(labels, str):
        return parse_labels(labels)
    given: list[Any] = list(labels) if isinstance(labels, Iterable) else [labels]
    if not all(isinstance(label, str) for label in given):
        raise FusionerError("labels must be strings")
    clean = [" ".join(label.split()) for label in given]
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
    path = Path(__file__).with_name("data") / packaged if source == "packaged" else Path(source).expanduser()
    content = parse_file(path, json.loads, "the words in ")
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
MIN_LOGIT = -20.0  # of a label where a background name wins
HYPERNYM_MARGIN = 0.01  # logits that a class loses when it stands for another label
HYPONYM_WEIGHT = 0.05  # share of a hyponym's own logits, which order several hyponyms of one class
MODIFIERS = frozenset(
    {"a", "an", "the", "some", "any", "my", "your", "his", "her", "our", "their", "this", "that", "these", "those",
     "one", "two", "three", "several", "many", "few", "other", "another", "red", "blue", "green", "yellow",
     "orange", "black", "white", "brown", "grey", "gray", "pink", "purple", "beige", "golden", "silver", "dark",
     "light", "bright", "big", "small", "large", "little", "tiny", "huge", "tall", "short", "long", "old", "young",
     "new", "wooden", "metal", "plastic", "leather", "empty", "full", "left", "right", "front", "male", "female",
     "striped", "spotted", "dirty", "clean", "wet", "dry", "happy", "sleeping", "sitting", "standing", "running",
     "walking", "parked", "moving", "flying"}
)  # fmt: skip
"""Determiners and adjectives that do not change what a noun denotes."""
PREPOSITIONS = frozenset(
    {"in", "on", "with", "without", "at", "of", "under", "over", "near", "behind", "beside", "above", "below", "by",
     "from", "for", "wearing", "holding", "riding", "carrying", "sitting", "standing", "walking", "eating", "playing"}
)  # fmt: skip
"""Words that end a noun and begin what describes it: "man | with an umbrella"."""
SURFACES = frozenset(
    {"asphalt", "beach", "bridge", "building", "bush", "carpet", "ceiling", "cliff", "cloud", "desert", "dirt",
     "fence", "field", "floor", "forest", "grass", "gravel", "ground", "hedge", "highway", "hill", "house", "ice",
     "lake", "lane", "lawn", "meadow", "mountain", "mud", "ocean", "path", "pavement", "platform", "pond", "railroad",
     "river", "road", "rock", "roof", "rug", "sand", "sea", "sidewalk", "sky", "skyscraper", "snow", "soil", "street",
     "tree", "wall", "water"}
)  # fmt: skip
"""What other things stand on or before."""
SURFACE_MARGIN = 0.01  # logits by which a surface stays below what is before it
SURFACE_RAMP = 10.0  # times a negative logit that may be ignored: the limit fades out instead of ending at once
COLLECTIVES = frozenset(
    {"bunch", "couple", "crowd", "flock", "group", "herd", "lot", "pair", "piece", "pile", "row", "set", "slice",
     "stack"}
)  # fmt: skip
"""Nouns before "of" that say how many: "a herd of cows" are cows."""
SEPARATORS = frozenset(";|")
"""Characters that a list of labels may have been meant to be split at."""
NEGATIONS = frozenset({"no", "not", "non", "without"})
"""First words of labels that name what is not wanted."""
PLURAL_ENDINGS = (
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"),
    ("ves", "f"), ("ves", "fe"),
)  # fmt: skip
"""WordNet's detachment rules of nouns (morphy(7WN)), plural ending -> singular ending, and the two of -ves."""


def head_noun(label: str) -> str:
    """Remove what describes a noun: `"the red cars"` -> `"cars"`, `"man with a hat"` -> `"man"`."""
    words = label.casefold().replace("\u2019", "'").split()
    while len(words) > 1 and words[0] in MODIFIERS:
        words = words[1:]
    if len(words) > 2 and words[1] == "of" and {words[0], *_singulars(words[0])} & COLLECTIVES:
        return head_noun(" ".join(words[2:]))
    end = next((place for place, word in enumerate(words) if place and word in PREPOSITIONS), len(words))
    start = max((place for place, word in enumerate(words[:end]) if word.endswith(("'s", "s'"))), default=-1) + 1
    return " ".join(words[start if start < end else 0 : end])


def noun_forms(label: str) -> list[str]:
    """Return what a label may be listed as: itself, its noun, and the noun's last word, each also in the singular.

    Compound nouns that are no kind of their last word ("sea horse") have no last word here.
    """
    noun = head_noun(label)
    phrases = [label.casefold(), noun]
    if not _listed_words("compounds").intersection(_singulars(noun)):
        phrases.append(noun.split()[-1])
    return list(dict.fromkeys(form for phrase in phrases for form in _singulars(phrase)))


def find_indistinct(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of labels that have the same noun and differ by what describes it."""
    first: dict[str, str] = {}
    pairs = []
    for label in labels:
        other = first.setdefault(head_noun(label), label)
        if other != label:
            pairs.append((other, label))
    return pairs


def label_warnings(labels: Sequence[str], missing: Sequence[str] = ()) -> list[str]:
    """Return a sentence for each group of labels that a model cannot be expected to find.

    Args:
        missing: labels that were not found; those of other languages than English are named.
    """
    warnings = []
    for first, second in find_indistinct(labels):
        warnings.append(f"'{first}' and '{second}' have the same noun: the model cannot tell them apart")
    if names := [label for label in labels if not SEPARATORS.isdisjoint(label)]:
        warnings.append(f"labels are separated by commas, so each of these is one label: {', '.join(names)}")
    if names := [label for label in labels if len(words := label.casefold().split()) > 1 and words[0] in NEGATIONS]:
        warnings.append(f"negations are not understood, they find what they exclude: {', '.join(names)}")
    if names := [label for label in labels if _listed_words("parts").intersection(noun_forms(label))]:
        warnings.append(f"parts of things are not segmented apart from the whole: {', '.join(names)}")
    if names := [label for label in labels if not label.replace("\u2019", "'").isascii()]:
        warnings.append(f"labels are understood in English only: {', '.join(names)}")
    if names := find_uncommon([label for label in missing if label.isascii()]):
        warnings.append(f"not found, and no common English words: {', '.join(names)}")
    return warnings


def find_uncommon(labels: Sequence[str]) -> list[str]:
    """Return the labels with a last word that is no common English one: not in MiniLM's vocabulary or our word lists.

    Most words of other languages are among them, and rare English ones.
    """
    last_words = {label: re.findall("[a-z]+", label.casefold())[-1:] for label in labels}
    return [
        label for label, words in last_words.items() if words and not _common_words().intersection(_singulars(words[0]))
    ]


@cache
def _listed_words(name: str) -> frozenset[str]:
    """Return the words of parts.json or compounds.json."""
    return frozenset(read_word_lists("packaged", f"{name}.json")[name])


@cache
def _common_words() -> frozenset[str]:
    words = set(json.loads(weights_file("minilm.tokenizer.json").read_text("utf-8"))["model"]["vocab"])
    for name in ("synonyms.json", "hyponyms.json", "hypernyms.json", "parts.json"):
        for label, others in read_word_lists("packaged", name).items():
            words.update(*(phrase.split() for phrase in (label, *others)))
    return frozenset(words)


def _singulars(word: str) -> list[str]:
    """Return a word and what it may be the plural of."""
    return [word, *(word[: -len(end)] + base for end, base in PLURAL_ENDINGS if word.endswith(end))]


def cap_surfaces(logits: Float[np.ndarray, "k h w"], labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
    """Cap the logits of surfaces ("road") just below those of another label ("car") that is likelier than not there.

    Data sets that annotate things alone leave surfaces out, so a network trained on several sets has rarely seen the
    two compete. Probabilities hardly change, the argmax does (docs/lab-notes/inference.md#surfaces).
    """
    behind = np.array([not SURFACES.isdisjoint(noun_forms(label)) for label in labels])
    if behind.all() or not behind.any():
        return logits
    before = logits[~behind].max(axis=0)
    cap = before - SURFACE_MARGIN - SURFACE_RAMP * np.minimum(before, 0)
    return np.where(behind[:, None, None], np.minimum(logits, cap), logits)


class SoftmaxNames:
    """Labels and background names that compete for every pixel, by a softmax over their scores.

    A label may be several names, joined by ", ": the likeliest of them counts at each pixel.

    Args:
        background: names besides the labels; a pixel whose highest score is one of theirs gets no label.
        min_area: labels with at most this share of all labelled pixels get none (SCLIP).
    """

    def __init__(self, background: Sequence[str], min_area: float = 0.0) -> None:
        self.background, self.min_area = background, min_area

    def expand(self, labels: Sequence[str]) -> list[str]:
        """Return the names of the labels, followed by the background names that are none of them."""
        names = [name for label in labels for name in label.split(", ")]
        known = {name.casefold() for name in names}
        return [*names, *(name for name in self.background if name.casefold() not in known)]

    def reduce(self, scores: Float[np.ndarray, "n h w"], labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Return the logit of each label's probability, its share of the softmax over the scores of `expand(labels)`.

        The scores are overwritten.
        """
        scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        starts = np.cumsum([0, *(label.count(", ") + 1 for label in labels)])
        total, background = scores.sum(axis=0), scores[starts[-1] :]
        own = np.maximum.reduceat(scores[: starts[-1]], starts[:-1], axis=0)
        if self.min_area:
            winners = own.argmax(axis=0)[own.max(axis=0) >= background.max(axis=0, initial=0)]
            areas = np.bincount(winners, minlength=len(own))
            own[areas <= self.min_area * areas.sum()] = 0
        logits = np.log((own / total).clip(1e-7)) - np.log(((total - own) / total).clip(1e-7))
        if len(background):
            np.copyto(logits, MIN_LOGIT, where=background.max(axis=0) > own.max(axis=0))
        return logits


class LabelHierarchy:
    """Trained classes that stand for free-form labels: members of hypernyms, and classes above hyponyms.

    "animal" is found wherever one of its trained members is. "cyclist", "women" and "a red car" are found wherever
    *person* or *car* is: WordNet's hyponyms and our synonyms, plurals, and nouns with determiners or adjectives.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        trained = {name.casefold(): name for name in classes}
        self._trained = trained
        self._members: dict[str, tuple[str, ...]] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        if not trained:
            return
        hypernyms = read_word_lists("packaged", "hypernyms.json")
        for word in HYPERNYMS:
            if members := tuple(trained[name.casefold()] for name in hypernyms[word] if name.casefold() in trained):
                self._members[word] = members
        for file in ("synonyms.json", "hyponyms.json"):
            known = set(self._classes)  # synonyms come first
            for name, words in read_word_lists("packaged", file).items():
                for word in words if name.casefold() in trained else ():
                    if word not in known and word not in trained and word not in self._members:
                        self._classes[word] = (*self._classes.get(word, ()), trained[name.casefold()])

    def members(self, label: str) -> tuple[str, ...]:
        """Return the trained members of a hypernym."""
        return self._find(label)[0]

    def classes(self, label: str) -> tuple[str, ...]:
        """Return the trained classes that a label is a hyponym, a synonym or an inflection of."""
        return self._find(label)[1]

    def _find(self, label: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the members and the classes of a label; neither if it is a trained class."""
        for form in noun_forms(label) if self._trained else ():
            if form in self._members:
                return self._members[form], ()
            if form in self._trained:
                return (), () if form == label.casefold() else (self._trained[form],)
            if form in self._classes:
                return (), self._classes[form]
        return (), ()

    def expand(self, labels: Sequence[str]) -> list[str]:
        """Return the labels, followed by the trained classes that stand for some of them, each once."""
        added = (name for label in labels for name in (*self.members(label), *self.classes(label)))
        return list(dict.fromkeys([*labels, *added]))

    def reduce(self, logits: Float[np.ndarray, "n h w"], labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Reduce the logits of `expand(labels)` to the labels: the maximum of a label's own and its classes'."""
        names = self.expand(labels)
        if not any(self.classes(label) or self.members(label) for label in labels):
            return logits
        row, planes = {name: number for number, name in enumerate(names)}, []
        for label in labels:
            own = logits[row[label]]
            below = [logits[row[name]] - HYPERNYM_MARGIN for name in self.members(label)]
            above = [logits[row[name]] for name in self.classes(label)]
            above = [plane - HYPERNYM_MARGIN + HYPONYM_WEIGHT * (own - plane) for plane in above]
            planes.append(np.max([own, *below, *above], axis=0))
        return np.stack(planes)
