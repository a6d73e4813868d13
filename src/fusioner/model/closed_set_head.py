"""A memory of the trained classes: what each looks like to the frozen encoders, found again by name.

Beyond the paper. A network this light needs long to learn hundreds of looks label by label; a closed-set segmenter over
the same tokens learns them all at once, before the training starts, and the network only learns how far to trust it. A
label reads the answers of the names nearest to it in text space, averaged, and added up, for what is a dog is an animal
however little it is a cow; how near they are is a channel of its own, so that an unseen word is known as one.
`training.memory` fits it.
Letters: B images, K labels, N remembered names, D text width, V visual width, M classes of the posterior, F = V + M
features, P patches, Gh Gw grid.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig
from fusioner.model.fusion import Block

CHANNELS = 3
# Chosen on training images, see docs/accuracy.md.
NEARBY = 0.06  # temperature of a label's cosines with names, here and in `model.similarity`
SURELY = 0.04  # the same where odds are added up, of which one can be a thousand times another
MOST = 15.0  # log-odds beyond which surer is no surer
FLOOR = 1e-5  # share below which a name counts as absent
RELATED = 0.6  # cosine below which even the nearest name counts in part
TELLING = 0.7  # cosine above which a name stands for the label itself
CONTEXT = FusionerConfig(width=192, layers=2, heads=4, mlp_ratio=2.0, dropout=0.1)
"""Shape of the closed-set segmenter's blocks."""


class Recalled(NamedTuple):
    """What the remembered names say of images, whatever the labels.

    Attributes:
        sides: log-odds of each name against "anything else".
        shares: of each name in a softmax over those it was taught with and "anything else".
    """

    sides: Float[Tensor, "b n p"]
    shares: Float[Tensor, "b n p"]


class ClosedSet(nn.Module):
    """Features of an image's patches (B, P, F) -> logits of N names and "anything else" for each (B, P, N + 1).

    A linear layer, blocks in which patches look at each other, and a linear layer; docs/accuracy.md has what that is
    worth beside single patches.
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


class Memory(nn.Module):
    """What an image recalls (`look`) and label embeddings -> three maps and a number a label, each about unit scale.

    The mean log-odds of the names near the label against "anything else"; the log of their odds added up; the log of
    their shares, added up, in a softmax over all names and "anything else"; and the cosine of the nearest. In a sum the
    nearest counts whole and others by how much less near they are. Frozen: it is fitted before the network is trained.

    Attributes:
        names: unit embeddings of the remembered names, those of earlier trainings first; known: which of them any
            training image showed.
        earlier: what the models that this one was trained further from remember, oldest first; each has an "anything
            else" of its own.
        own: how many names its own training has.
        whole: says what a patch shows; its last output is "anything else".
        cross: the same fitted without one portion of the training images each, for training on that portion: what was
            fitted to an image is surer of it than it will be of a new one. Empty outside training, not saved.
    """

    names: Float[Tensor, "n d"]
    known: Bool[Tensor, " n"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.own = config.memory
        n, width = sum(config.earlier) + self.own, config.visual_dim + config.aligned_dim
        self.register_buffer("names", torch.zeros(n, config.text_dim))
        self.register_buffer("known", torch.zeros(n, dtype=torch.bool))
        self.earlier = nn.ModuleList(ClosedSet(width, count) for count in config.earlier).requires_grad_(False)
        self.whole = ClosedSet(width, self.own).requires_grad_(False)
        self.cross: list[ClosedSet] = []  # a plain list: no state of the model
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Always as it will be asked later: what is learnt here was learnt before."""
        return super().train(False)

    def inherit(self, other: "Memory") -> None:
        """Take over all that another remembers, as what is remembered of earlier trainings."""
        inherited = len(other.names)
        self.names[:inherited].copy_(other.names)
        self.known[:inherited].copy_(other.known)
        for mine, theirs in zip(self.earlier, [*other.earlier, other.whole], strict=True):
            mine.load_state_dict(theirs.state_dict())

    def learn(self, names: Float[Tensor, "own d"], known: Bool[Tensor, " own"]) -> None:
        """The names of its own training, and which of them any image shows."""
        self.names[-len(names) :].copy_(names)
        self.known[-len(names) :].copy_(known)

    def look(
        self,
        visual: Float[Tensor, "b v p"],
        log: Float[Tensor, "b m p"],
        portion: Int[Tensor, " b"] | None = None,
    ) -> Recalled:
        """What every remembered name says of every patch, whatever the labels.

        Args:
            visual, log: unit tokens and centred log-posterior, the `features`.
            portion: of each image among the training images; None or -1 reads what all of them taught.
        """
        seen = torch.cat([visual, log], dim=1).transpose(1, 2)
        each = [*(network(seen) for network in self.earlier), self._scores(seen, portion)]
        known = self.known.split([scores.shape[2] - 1 for scores in each])
        told = [_recalled(scores.transpose(1, 2), shown) for scores, shown in zip(each, known, strict=True)]
        return told[0] if len(told) == 1 else Recalled(*(torch.cat(maps, dim=1) for maps in zip(*told, strict=True)))

    def forward(
        self, recalled: Recalled, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k c p"], Float[Tensor, "b k"]]:
        """The maps, and the number.

        Args:
            text: unit label embeddings.
            hidden: labels that must do without the names that stand for them, as an unseen word does.
        """
        cosines = text @ self.names.T  # (B, K, N)
        unread = (~self.known).expand_as(cosines)
        if hidden is not None:
            unread = unread | (hidden[..., None] & (cosines > TELLING))
        cosines = cosines.masked_fill(unread, -1.0)
        nearest = cosines.amax(dim=-1, keepdim=True)
        side = (cosines / NEARBY).softmax(dim=-1) @ recalled.sides
        behind = cosines - nearest.clamp_min(RELATED)
        odds = (behind / SURELY).exp() @ recalled.sides.clamp(-MOST, MOST).exp()
        share = (behind / NEARBY).exp() @ recalled.shares
        maps = torch.stack([side / 4.0, odds.log() / 4.0, ((share + FLOOR).log() + 6.0) / 2.5], dim=2)
        return maps, 2.0 * nearest[..., 0] - 1.0

    def _scores(self, seen: Float[Tensor, "b p f"], portion: Int[Tensor, " b"] | None) -> Float[Tensor, "b p n1"]:
        """Of each image by what was fitted without its portion."""
        if portion is None or not self.cross:
            return self.whole(seen)
        scores = seen.new_empty(*seen.shape[:2], self.own + 1)
        for number in portion.unique().tolist():
            learnt = self.whole if number < 0 else self.cross[number].to(seen.device)
            scores[portion == number] = learnt(seen[portion == number])
        return scores


def _recalled(scores: Float[Tensor, "b n1 p"], known: Bool[Tensor, " n"]) -> Recalled:
    unknown = F.pad(~known, (0, 1))[:, None]
    shares = scores.masked_fill(unknown, -torch.inf).softmax(dim=1)
    return Recalled(scores[:, :-1] - scores[:, -1:], shares[:, :-1])


def features(
    visual: Float[Tensor, "b v gh gw"], log_posterior: Float[Tensor, "b m gh gw"]
) -> Float[Tensor, "b f gh gw"]:
    """What is remembered of a patch: its unit token and its centred log-posterior."""
    return torch.cat([visual, centred(log_posterior.flatten(2)).view_as(log_posterior)], dim=1)


def posterior(aligned: Float[Tensor, "b m *p"]) -> Float[Tensor, "b m *p"]:
    """A classifier's posterior, whatever its scale was; nothing is less likely than 1e-7."""
    return (aligned / aligned.sum(dim=1, keepdim=True).clamp_min(1e-6)).clamp_min(1e-7)


def centred(log: Float[Tensor, "b m p"]) -> Float[Tensor, "b m p"]:
    """Less its mean over the classes.

    The mean is a matrix product: runtimes sum a thousand rows one after the other, and are off in the fifth digit.
    """
    return log - log.new_full((1, log.shape[1]), 1 / log.shape[1]) @ log


def log_posterior(aligned: Float[Tensor, "b m gh gw"]) -> Float[Tensor, "b m gh gw"]:
    """The logarithm of `posterior`."""
    return posterior(aligned).log()
