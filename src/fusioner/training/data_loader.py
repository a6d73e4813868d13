"""Batches of tokens, prompts and label maps.

Letters: B images, P prompts (padded to the largest number in the batch), D token channels, h w loss size.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, Int64, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.data.masks import resize_mask
from fusioner.features.dataset import TokenSource
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Corpus, DatasetSplit, Sample, cross_fit_fold
from fusioner.training.prompt_sampling import Vocabulary, draw_prompts

LIVE_VIEWS = 2**31 - 1
"""Number of views drawn from a source without a limit; 0, the image itself, is reserved for held-out images."""


class Batch(NamedTuple):
    """One step's data, or a micro-batch of it."""

    tokens: Float[Tensor, "b d gh gw"]
    text: Float[Tensor, "b p c"]  # unit embeddings of each image's prompts
    labels: Int16[Tensor, "b h w"]  # i at the image's i-th prompt (from 1), 0 at anything else, -1 ignored
    classes: Int64[Tensor, "b p"]  # of each prompt, in the joint numbering (`Corpus.class_offsets`)
    padded: Bool[Tensor, "b p"]  # prompts that only fill up the tensor
    folds: Int64[Tensor, " b"]  # cross-fitting fold of each training image (`cross_fit_fold`); -1: held out

    def target(self) -> Float[Tensor, "b p h w"]:
        """Return 1 where a pixel shows the prompt, else 0."""
        numbers = torch.arange(1, self.text.shape[1] + 1, device=self.labels.device, dtype=torch.int16)
        return (self.labels[:, None] == numbers[:, None, None]).float()

    def ignore(self) -> Bool[Tensor, "b p h w"]:
        """Return True where a prompt's pixel is excluded from the loss."""
        return (self.labels < 0)[:, None] | self.padded[..., None, None]

    def counts(self) -> Float[Tensor, "2"]:
        """Return (prompts x pixels in the loss, pixels in the loss)."""
        return torch.stack([(~self.ignore()).sum(), (self.labels >= 0).sum()]).float()

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))

    def split(self, count: int) -> list["Batch"]:
        """Split into at most `count` micro-batches of nearly equal size."""
        parts = [tensor.tensor_split(min(count, len(self.tokens))) for tensor in self]
        return [Batch(*tensors) for tensors in zip(*parts, strict=True)]


class DataLoader:
    """Builds batches: views, prompts and words drawn by (seed, step, place), tokens from each split's source.

    `table` holds the unit embeddings of `vocabulary.words`, in their order.
    """

    def __init__(
        self,
        corpus: Corpus,
        sources: Sequence[TokenSource],
        vocabulary: Vocabulary,
        table: Float[Tensor, "n c"],
        config: TrainConfig,
    ) -> None:
        self.corpus, self.sources, self.vocabulary, self.table = corpus, sources, vocabulary, table.cpu()
        self.config, self.options = config, config.data
        self.side = max(1, config.model.resolution // config.optim.loss_stride)
        power = self.options.negative_frequency_power
        self._weights = [_negative_weights(split, power) if power else None for split in corpus.splits]
        self._epoch, self._permutation = -1, np.empty(0, int)

    def samples(self, step: int) -> list[Sample]:
        """Return the samples of a step: a new permutation every epoch; batches run on across the ends of epochs."""
        samples, size = self.corpus.samples, self.config.optim.batch_size
        drawn = []
        for epoch, place in (divmod(place, len(samples)) for place in range(step * size, (step + 1) * size)):
            if epoch != self._epoch:
                rng = np.random.default_rng((self.config.seed, 1, epoch))
                self._epoch, self._permutation = epoch, rng.permutation(len(samples))
            drawn.append(samples[self._permutation[place]])
        return drawn

    def build(self, samples: Sequence[Sample], seeds: Sequence[tuple[int, ...]], training: bool = True) -> Batch:
        """Build a batch of samples; `seeds` are those of the random draws for each.

        Only training batches use other views than 0, and flips. Samples with a class are prompted with it alone.
        """
        rngs = [np.random.default_rng((self.config.seed, 2, *numbers)) for numbers in seeds]
        views = [0] * len(samples)
        for row, (sample, rng) in enumerate(zip(samples, rngs, strict=True) if training else ()):
            limit = self.sources[sample.split].views
            views[row] = int(rng.integers(1, LIVE_VIEWS) if limit is None else rng.integers(limit))
        tokens, masks = self._read(samples, views)
        if self.options.horizontal_flip and training:
            flips = [bool(rng.integers(2)) for rng in rngs]
            tokens = torch.stack([grid.flip(-1) if flip else grid for grid, flip in zip(tokens, flips, strict=True)])
            masks = [mask[:, ::-1] if flip else mask for mask, flip in zip(masks, flips, strict=True)]
        prompted = [self._prompt(*entry) for entry in zip(samples, masks, rngs, strict=True)]
        width = max(1, *(len(image_rows) for image_rows, _, _ in prompted))
        rows, classes = np.zeros((2, len(samples), width), np.int64)
        padded = np.ones(rows.shape, bool)
        for i, (image_rows, image_classes, _) in enumerate(prompted):
            used = slice(len(image_rows))
            rows[i, used], classes[i, used], padded[i, used] = image_rows, image_classes, False
        labels = np.stack([image_labels for _, _, image_labels in prompted])
        folds = np.array([cross_fit_fold(sample.item.id) if training else -1 for sample in samples])
        arrays = (torch.from_numpy(array) for array in (labels, classes, padded, folds))
        return Batch(tokens, self.table[torch.from_numpy(rows)], *arrays)

    def training_batches(self, start: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield process `rank`'s share (of `world`) of the batches of steps `start`, `start + 1`, ... without end."""
        for step in count(start):
            share = list(enumerate(self.samples(step)))[rank::world]
            yield self.build([sample for _, sample in share], [(step, place) for place, _ in share])

    def held_out_batches(self, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield a process's share of the held-out samples, in order, unaugmented and with fixed prompts."""
        share, batch_size = list(enumerate(self.corpus.held_out))[rank::world], self.config.optim.batch_size
        for start in range(0, len(share), batch_size):
            part = share[start : start + batch_size]
            yield self.build([sample for _, sample in part], [(place,) for place, _ in part], training=False)

    def _read(
        self, samples: Sequence[Sample], views: Sequence[int]
    ) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "_ _"]]]:
        """Read tokens and masks in the samples' order, in one request per split."""
        entries: dict[int, tuple[Tensor, Integer[ndarray, "_ _"]]] = {}
        for split, source in enumerate(self.sources):
            places = [i for i, sample in enumerate(samples) if sample.split == split]
            if places:
                tokens, masks = source.batch([(samples[i].item, views[i]) for i in places])
                entries |= zip(places, zip(tokens, masks, strict=True), strict=True)
        ordered = [entries[i] for i in range(len(samples))]
        return torch.stack([tokens for tokens, _ in ordered]), [mask for _, mask in ordered]

    def _prompt(
        self, sample: Sample, mask: Integer[ndarray, "_ _"], rng: np.random.Generator
    ) -> tuple[list[int], list[int], Int16[ndarray, "h w"]]:
        """Return rows of the words of an image's prompts, their classes, and the label map (both as in `Batch`)."""
        split, offset = self.corpus.splits[sample.split], self.corpus.class_offsets[sample.split]
        small, visible = resize_mask(mask, (self.side, self.side)), np.unique(mask)
        if sample.class_id is not None:
            ids = [sample.class_id]
        else:
            weights = self._weights[sample.split]
            ids = draw_prompts(split.classes, small, visible, self.options.prompts, rng, weights)
        labels, words, used = np.zeros(small.shape, np.int16), [], set(ids)
        for number, class_id in enumerate(ids, start=1):
            row, group = self._draw_word(split, class_id, used, visible, rng)
            words.append(row)
            used |= group
            labels[np.isin(small, list(group))] = number
            labels[np.isin(small, list(group - set(split.classes)))] = -1  # unseen animals are "animal" as well
        labels[np.isin(small, split.ignored)] = -1
        return words, [i + offset for i in ids], labels

    def _draw_word(
        self,
        split: DatasetSplit,
        class_id: int,
        used: set[int],
        visible: Integer[ndarray, "n"],
        rng: np.random.Generator,
    ) -> tuple[int, set[int]]:
        """Return the row of a word for a class, and all classes of the split that the word covers."""
        names = split.data.prompts
        row = self.vocabulary.draw_hypernym(names[class_id], rng) if self.vocabulary.groups else None
        if row is not None:
            group = {i for i in split.data.class_ids if names[i].casefold() in self.vocabulary.groups[row]}
            others = group - {class_id}
            # No pixel may belong to two prompts, and a negative hypernym needs all of its classes to be absent.
            if not others & used and (class_id in visible or not others & set(visible.tolist())):
                return row, group
        return self.vocabulary.draw(names[class_id], rng), {class_id}


def _negative_weights(split: DatasetSplit, power: float) -> Float[ndarray, "n"]:
    images = Counter(class_id for _, class_id in split.data.pairs(split.classes))
    return np.array([1.0 + images[class_id] for class_id in split.classes]) ** power
