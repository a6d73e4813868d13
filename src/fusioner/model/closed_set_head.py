"""Closed-set head: scores of the trained classes per patch, matched to labels by the class names.

Beyond the paper. A network this light needs long to learn the appearance of hundreds of classes label by label; a
closed-set segmenter over the same tokens learns them all at once, before the training, and the network only learns how
far to trust it. A label averages the scores of the class names nearest to it in text space, and also sums them up,
since a dog is an animal even if it is not a cow; the cosine to the nearest name is a channel of its own, which marks
unseen words. `training.closed_set` fits it.
Letters: B images, K labels, N class names, D text width, V visual width, M classes of the posterior, F = V + M
features, P patches, Gh Gw grid.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig
from fusioner.model.fusion import Block

NUM_MAPS = 3
# Tuned on training images, see docs/accuracy.md.
NAME_TEMPERATURE = 0.06  # of the cosines between label and names, here and in `model.similarity`
ODDS_TEMPERATURE = 0.04  # the same for sums of odds, of which one can be a thousand times another
MAX_LOG_ODDS = 15.0
MIN_PROBABILITY = 1e-5
RELATED_COSINE = 0.6  # below it even the nearest name counts in part
SYNONYM_COSINE = 0.7  # above it a name stands for the label itself
CONTEXT = FusionerConfig(width=192, layers=2, heads=4, mlp_ratio=2.0, dropout=0.1)
"""Shape of the closed-set segmenter's blocks."""


class ClosedSetScores(NamedTuple):
    """Label-independent scores of the class names.

    Attributes:
        log_odds: of each name against "other".
        probabilities: of each name in a softmax over the names it was trained with and "other".
    """

    log_odds: Float[Tensor, "b n p"]
    probabilities: Float[Tensor, "b n p"]


class ClosedSetSegmenter(nn.Module):
    """Features of an image's patches (B, P, F) -> logits of N names and "other" per patch (B, P, N + 1).

    A linear layer, transformer blocks over the patches, and a linear layer; docs/accuracy.md compares it to single
    patches.
    """

    def __init__(self, features: int, names: int) -> None:
        super().__init__()
        self.first = nn.Linear(features, CONTEXT.width)
        self.blocks = nn.ModuleList(Block(CONTEXT, 0.0) for _ in range(CONTEXT.layers))
        self.norm = nn.LayerNorm(CONTEXT.width)
        self.dropout = nn.Dropout(0.3)
        self.last = nn.Linear(CONTEXT.width, names + 1)

    def forward(self, features: Float[Tensor, "b p f"]) -> Float[Tensor, "b p n1"]:
        x = self.first(features)
        for block in self.blocks:
            x = block(x, None)
        return self.last(self.dropout(self.norm(x)))


class ClosedSetHead(nn.Module):
    """Image features (`encode_image`) and label embeddings -> three maps and one number per label, about unit scale.

    The maps: the mean log-odds of the names near the label; the log of their summed odds; the log of their summed
    probabilities. In a sum the nearest name has weight 1 and the others less with their distance. The number: the
    cosine of the nearest name. The head is fitted before the network is trained, and frozen.

    Attributes:
        names: unit embeddings of the class names, those of previous trainings first; known: which of them occurred in
            a training image.
        previous: segmenters of the models that this one was initialised from, oldest first, each with its own "other".
        num_classes: number of names of its own training.
        full: the closed-set segmenter; its last output is "other".
        cross_fit: the same fitted without one split of the training images each, for training on that split: on images
            it was fitted to a segmenter is more certain than on new ones. Empty outside training, not saved.
    """

    names: Float[Tensor, "n d"]
    known: Bool[Tensor, " n"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.num_classes = config.closed_set_classes
        n, width = sum(config.previous_closed_sets) + self.num_classes, config.visual_dim + config.similarity_dim
        self.register_buffer("names", torch.zeros(n, config.text_dim))
        self.register_buffer("known", torch.zeros(n, dtype=torch.bool))
        previous = (ClosedSetSegmenter(width, count) for count in config.previous_closed_sets)
        self.previous = nn.ModuleList(previous).requires_grad_(False)
        self.full = ClosedSetSegmenter(width, self.num_classes).requires_grad_(False)
        self.cross_fit: list[ClosedSetSegmenter] = []  # a plain list: not part of the state
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: the head is frozen."""
        return super().train(False)

    def load_previous(self, other: "ClosedSetHead") -> None:
        """Copy the names and segmenters of another head as those of previous trainings."""
        count = len(other.names)
        self.names[:count].copy_(other.names)
        self.known[:count].copy_(other.known)
        for target, source in zip(self.previous, [*other.previous, other.full], strict=True):
            target.load_state_dict(source.state_dict())

    def set_names(self, names: Float[Tensor, "c d"], known: Bool[Tensor, " c"]) -> None:
        """Set the names of its own training, and which of them occur in an image."""
        self.names[-len(names) :].copy_(names)
        self.known[-len(names) :].copy_(known)

    def encode_image(
        self,
        visual: Float[Tensor, "b v p"],
        log: Float[Tensor, "b m p"],
        split: Int[Tensor, " b"] | None = None,
    ) -> ClosedSetScores:
        """Compute the scores of all names at all patches.

        Args:
            visual, log: unit tokens and centred log-posterior, the `features`.
            split: cross-fitting split of each image; None or -1 selects the segmenter fitted to all images.
        """
        inputs = torch.cat([visual, log], dim=1).transpose(1, 2)
        logits = [*(segmenter(inputs) for segmenter in self.previous), self._logits(inputs, split)]
        known = self.known.split([part.shape[2] - 1 for part in logits])
        scores = [_scores(part.transpose(1, 2), names) for part, names in zip(logits, known, strict=True)]
        if len(scores) == 1:
            return scores[0]
        return ClosedSetScores(*(torch.cat(maps, dim=1) for maps in zip(*scores, strict=True)))

    def forward(
        self, scores: ClosedSetScores, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k c p"], Float[Tensor, "b k"]]:
        """Return the maps and the number of each label.

        Args:
            text: unit label embeddings.
            hidden: labels that must do without the names that stand for them, like unseen words.
        """
        cosines = text @ self.names.T  # (B, K, N)
        excluded = (~self.known).expand_as(cosines)
        if hidden is not None:
            excluded = excluded | (hidden[..., None] & (cosines > SYNONYM_COSINE))
        cosines = cosines.masked_fill(excluded, -1.0)
        nearest = cosines.amax(dim=-1, keepdim=True)
        mean = (cosines / NAME_TEMPERATURE).softmax(dim=-1) @ scores.log_odds
        distance = cosines - nearest.clamp_min(RELATED_COSINE)
        odds = (distance / ODDS_TEMPERATURE).exp() @ scores.log_odds.clamp(-MAX_LOG_ODDS, MAX_LOG_ODDS).exp()
        probability = (distance / NAME_TEMPERATURE).exp() @ scores.probabilities
        log_probability = (probability + MIN_PROBABILITY).log()
        maps = torch.stack([mean / 4.0, odds.log() / 4.0, (log_probability + 6.0) / 2.5], dim=2)
        return maps, 2.0 * nearest[..., 0] - 1.0

    def _logits(self, inputs: Float[Tensor, "b p f"], split: Int[Tensor, " b"] | None) -> Float[Tensor, "b p n1"]:
        """Return each image's logits by the segmenter that was fitted without its split."""
        if split is None or not self.cross_fit:
            return self.full(inputs)
        logits = inputs.new_empty(*inputs.shape[:2], self.num_classes + 1)
        for number in split.unique().tolist():
            segmenter = self.full if number < 0 else self.cross_fit[number].to(inputs.device)
            logits[split == number] = segmenter(inputs[split == number])
        return logits


def _scores(logits: Float[Tensor, "b n1 p"], known: Bool[Tensor, " n"]) -> ClosedSetScores:
    unknown = F.pad(~known, (0, 1))[:, None]
    probabilities = logits.masked_fill(unknown, -torch.inf).softmax(dim=1)
    return ClosedSetScores(logits[:, :-1] - logits[:, -1:], probabilities[:, :-1])


def features(
    visual: Float[Tensor, "b v gh gw"], log_posterior: Float[Tensor, "b m gh gw"]
) -> Float[Tensor, "b f gh gw"]:
    """Return the features of the closed-set segmenter: unit tokens and centred log-posterior."""
    return torch.cat([visual, centre(log_posterior.flatten(2)).view_as(log_posterior)], dim=1)


def posterior(scores: Float[Tensor, "b m *p"]) -> Float[Tensor, "b m *p"]:
    """Normalise a classifier's posterior of any scale; at least 1e-7."""
    return (scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-6)).clamp_min(1e-7)


def log_posterior(scores: Float[Tensor, "b m gh gw"]) -> Float[Tensor, "b m gh gw"]:
    """Return the logarithm of `posterior`."""
    return posterior(scores).log()


def centre(log: Float[Tensor, "b m p"]) -> Float[Tensor, "b m p"]:
    """Subtract the mean over the classes.

    The mean is a matrix product: runtimes sum a thousand rows sequentially, with errors in the fifth digit.
    """
    return log - log.new_full((1, log.shape[1]), 1 / log.shape[1]) @ log
