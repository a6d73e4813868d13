"""From a step's number to the tensors of its batch.

Letters: B images, P prompts (the most that any image of the batch has), D token channels, h w loss size.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.features.dataset import TokenSource
from fusioner.training.dataset import Corpus, Example, Order, Part, portion_of
from fusioner.training.prompt_sampling import Names, draw_prompts
from fusioner.training.strangers import Strangers

LIVE_VIEWS = 2**31 - 1
"""Views drawn from where a source has any number of them; 0, the image itself, is left to the held-out images."""


@dataclass(frozen=True)
class Batch:
    """One step's data, or a piece of it.

    Attributes:
        tokens: of the images.
        text: unit embeddings of each image's prompts.
        labels: at each pixel i = the image's i-th prompt, 0 = anything else, -1 = ignored.
        classes: class of each prompt, numbered through all parts (`Corpus.offsets`).
        padded: prompts that only fill up the tensor.
        unknown: where nobody knows whether a prompt is there, as of another set's names; (b, p, 1, 1) where it is none.
        portion: of the training images that each belongs to (`corpus.portion_of`); -1 for held-out images.
    """

    tokens: Float[Tensor, "b d gh gw"]
    text: Float[Tensor, "b p c"]
    labels: Int16[Tensor, "b h w"]
    classes: Int64[Tensor, "b p"]
    padded: Bool[Tensor, "b p"]
    unknown: Bool[Tensor, "b p #h #w"]
    portion: Int64[Tensor, " b"]

    def target(self) -> Float[Tensor, "b p h w"]:
        """1 where a pixel shows the prompt."""
        numbers = torch.arange(1, self.text.shape[1] + 1, device=self.labels.device, dtype=torch.int16)
        return (self.labels[:, None] == numbers[:, None, None]).float()

    def ignore(self) -> Bool[Tensor, "b p h w"]:
        """True where a prompt's pixel counts nowhere."""
        return (self.labels < 0)[:, None] | self.closed()

    def closed(self) -> Bool[Tensor, "b p #h #w"]:
        """Prompts that cannot be chosen, or where they cannot."""
        return self.padded[..., None, None] | self.unknown

    def counts(self) -> Float[Tensor, "2"]:
        """(prompts x pixels that count, pixels that count)."""
        return torch.stack([(~self.ignore()).sum(), (self.labels >= 0).sum()]).float()

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def pieces(self, count: int) -> list["Batch"]:
        """Cut into at most `count` pieces of nearly equal size."""
        split = [tensor.tensor_split(min(count, len(self.tokens))) for tensor in self._tensors()]
        return [Batch(*parts) for parts in zip(*split, strict=True)]

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.tokens, self.text, self.labels, self.classes, self.padded, self.unknown, self.portion


class Asked(NamedTuple):
    """What one image is prompted with.

    Attributes:
        rows: of the prompts' words; classes: of the prompts, as in `Batch`.
        labels: as in `Batch`.
        unknown: of the last prompts, which other sets lend.
    """

    rows: list[int]
    classes: list[int]
    labels: Int16[ndarray, "h w"]
    unknown: list[Bool[ndarray, "h w"]]


class Batches:
    """Builds batches: views, prompts and names drawn by (seed, step, place), tokens from each part's source.

    Args:
        sources: one a part of the corpus.
        table: unit embeddings of `names.words`, in their order.
        prompts: most prompts an image; examples with a class of their own get just that.
        size: (h, w) of the loss.
        mirror: flip half of the grids and masks left to right while training.
        hard: how much likelier an absent class is asked for that sounds like a present one: its chance grows with
            exp(hard x cosine of the two names). 0: all alike.
        fair: how much likelier an absent class is asked for that many images show: (1 + their number) ** fair, so that
            what is rare is not only ever asked for in vain. 0: all alike.
        strangers: lends names of the corpus's other sets, asked for beside an image's own prompts; None: nobody does.
    """

    def __init__(
        self,
        corpus: Corpus,
        sources: Sequence[TokenSource],
        names: Names,
        table: Float[Tensor, "n c"],
        prompts: int,
        size: tuple[int, int],
        seed: int,
        mirror: bool = False,
        hard: float = 0.0,
        fair: float = 0.0,
        strangers: Strangers | None = None,
    ) -> None:
        self.mirror = mirror
        self.corpus, self.sources, self.names, self.table = corpus, sources, names, table.cpu()
        self.prompts, self.size, self.seed, self.strangers = prompts, size, seed, strangers
        self._pulls = [self._pull(part, hard, fair) for part in corpus.parts] if hard or fair else None

    def build(self, examples: Sequence[Example], draw: Sequence[tuple[int, ...]], training: bool = True) -> Batch:
        """The batch of some examples, each with the numbers that seed its draws; only training takes views but 0.

        Raises:
            FusionerError: an unreadable image or mask.
        """
        rngs = [np.random.default_rng((self.seed, 2, *numbers)) for numbers in draw]
        views = [self._view(e, rng) if training else 0 for e, rng in zip(examples, rngs, strict=True)]
        tokens, masks = self._read(examples, views)
        if self.mirror and training:
            tokens, masks = _mirrored(tokens, masks, [bool(rng.integers(2)) for rng in rngs])
        chosen = [self._prompts(*each) for each in zip(examples, masks, rngs, strict=True)]
        most = max(1, *(len(one.classes) for one in chosen))
        rows, classes = np.zeros((2, len(examples), most), np.int64)
        padded = np.ones(rows.shape, bool)
        unknown = np.zeros((*rows.shape, *(self.size if self.strangers else (1, 1))), bool)
        for i, one in enumerate(chosen):
            rows[i, : len(one.rows)], classes[i, : len(one.rows)] = one.rows, one.classes
            padded[i, : len(one.rows)] = False
            if one.unknown:
                unknown[i, len(one.rows) - len(one.unknown) : len(one.rows)] = one.unknown
        labels = np.stack([one.labels for one in chosen])
        portion = np.array([portion_of(example.item.id) if training else -1 for example in examples])
        arrays = (torch.from_numpy(array) for array in (labels, classes, padded, unknown, portion))
        return Batch(tokens, self.table[torch.from_numpy(rows)], *arrays)

    def _view(self, example: Example, rng: np.random.Generator) -> int:
        views = self.sources[example.part].views
        return int(rng.integers(1, LIVE_VIEWS)) if views is None else int(rng.integers(views))

    def _read(
        self, examples: Sequence[Example], views: Sequence[int]
    ) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """Tokens and masks in the examples' order, each part's asked for at once."""
        tokens: dict[int, Tensor] = {}
        masks: dict[int, Integer[ndarray, "h w"]] = {}
        for part, source in enumerate(self.sources):
            places = [i for i, example in enumerate(examples) if example.part == part]
            if places:
                found, their_masks = source.batch([(examples[i].item, views[i]) for i in places])
                tokens |= dict(zip(places, found, strict=True))
                masks |= dict(zip(places, their_masks, strict=True))
        order = range(len(examples))
        return torch.stack([tokens[i] for i in order]), [masks[i] for i in order]

    def _prompts(self, example: Example, mask: Integer[ndarray, "h w"], rng: np.random.Generator) -> Asked:
        part, offset = self.corpus.parts[example.part], self.corpus.offsets[example.part]
        small, shown = shrink(mask, self.size), np.unique(mask)
        if example.class_id is not None:
            ids = [example.class_id]
        else:
            pull = None if self._pulls is None else self._pulls[example.part]
            ids = draw_prompts(part.classes, small, shown, self.prompts, rng, pull)
        labels, words, taken = np.zeros(small.shape, np.int16), [], set(ids)
        for number, class_id in enumerate(ids, start=1):
            row, group = self._word(part, class_id, taken, shown, rng)
            words.append(row)
            taken |= group
            labels[np.isin(small, list(group))] = number
            labels[np.isin(small, list(group - set(part.classes)))] = -1  # a fold's unseen animals are animals
        labels[np.isin(small, part.ignored)] = -1
        lent = self.strangers.draw(example.part, small, rng) if self.strangers and example.class_id is None else []
        words += [self.names.draw(one.name, rng) for one in lent]
        classes = [i + offset for i in ids] + [one.class_number for one in lent]
        return Asked(words, classes, labels, [one.unknown for one in lent])

    def _word(
        self, part: Part, class_id: int, taken: set[int], shown: Integer[ndarray, "n"], rng: np.random.Generator
    ) -> tuple[int, set[int]]:
        """The row of a word to ask for a class by, and all classes of the set that the word stands for."""
        named = part.data.prompts
        row = self.names.widen(named[class_id], rng) if self.names.groups else None
        if row is not None:
            group = {i for i in part.data.class_ids if named[i].casefold() in self.names.groups[row]}
            others = group - {class_id}
            # No pixel is claimed by two prompts, and a group stands for an absent class only if all of it is absent.
            if not others & taken and (class_id in shown or not others & set(shown.tolist())):
                return row, group
        return self.names.draw(named[class_id], rng), {class_id}

    def _pull(self, part: Part, hard: float, fair: float) -> Float[ndarray, "n n"]:
        """See `draw_prompts`."""
        own = self.table[[self.names.rows[part.data.prompts[class_id]][0] for class_id in part.classes]]
        shown = Counter(class_id for _, class_id in part.data.pairs(part.classes)) if fair else Counter()
        common = np.array([1.0 + shown[class_id] for class_id in part.classes]) ** fair
        return (hard * (own @ own.T)).exp().double().numpy() * common


def _mirrored(
    tokens: Float[Tensor, "b d gh gw"], masks: list[Integer[ndarray, "h w"]], which: list[bool]
) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
    """Left and right exchanged where `which` says so."""
    flipped = torch.where(torch.tensor(which, device=tokens.device)[:, None, None, None], tokens.flip(-1), tokens)
    return flipped, [mask[:, ::-1] if flip else mask for mask, flip in zip(masks, which, strict=True)]


def shrink(mask: Integer[ndarray, "h w"], size: tuple[int, int]) -> Integer[ndarray, "h2 w2"]:
    """Nearest neighbour about pixel centres, to `size` (height, width)."""
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns[None, :]]


def steps(batches: Batches, order: Order, start: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The batches of steps `start`, `start + 1`, ... without end; of each, the share of process `rank` of `world`."""
    step = start
    while True:
        mine = list(enumerate(order(step)))[rank::world]
        yield batches.build([example for _, example in mine], [(step, place) for place, _ in mine])
        step += 1


def held_out(batches: Batches, batch_size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """The held-out examples in their order, as they are and with prompts that never change; a process's share."""
    mine = list(enumerate(batches.corpus.held_out))[rank::world]
    for start in range(0, len(mine), batch_size):
        some = mine[start : start + batch_size]
        yield batches.build([example for _, example in some], [(place,) for place, _ in some], training=False)
