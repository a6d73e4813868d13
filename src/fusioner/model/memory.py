"""A memory of the trained classes: what each looks like to the frozen encoders, found again by name.

Beyond the paper. A network this light needs long to learn hundreds of looks label by label; a perceptron over single
patches learns them all at once, in minutes and before the training starts, and the network only learns how far to trust
it. A label reads the answers of the names nearest to it in text space; how near they are is a channel of its own, so
that an unseen word is known as one. `training.memory` fits it.
Letters: B images, K labels, N remembered names, D text width, V visual width, M classes of the posterior, F = V + M
features, U units of the perceptron, P patches, Gh Gw grid.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig

CHANNELS = 3
UNITS = 256
# Chosen on training images by how well single patches are told apart without any training, see docs/accuracy.md.
NEARBY = 0.06  # softmax temperature over a label's cosines with names, here and in `model.similarity`
FLOOR = 1e-5  # share below which a name counts as absent
TELLING = 0.7  # cosine above which a name stands for the label itself
PARTS = ("first", "first_bias", "second", "second_bias")


class Recalled(NamedTuple):
    """What the remembered names say of images, whatever the labels.

    Attributes:
        sides: log-odds of each name against "anything else".
        shares: of each name in a softmax over all of them and "anything else".
    """

    sides: Float[Tensor, "b n p"]
    shares: Float[Tensor, "b n p"]


class Memory(nn.Module):
    """What an image recalls (`look`) and label embeddings -> three maps a label, each about unit scale.

    The log-odds of the label against "anything else"; the log of its share in a softmax over all names and "anything
    else"; and the cosine of the nearest name, the same everywhere.

    Attributes:
        names: unit embeddings of the remembered names; known: which of them any training image showed.
        first, first_bias, second, second_bias: the perceptron; its last output, N, is "anything else".
        cross_first ...: the same fitted without one portion of the training images each, for training on that portion:
            what was fitted to an image is surer of it than it will be of a new one. Empty outside training, not saved.
    """

    names: Float[Tensor, "n d"]
    known: Bool[Tensor, " n"]
    first: Float[Tensor, "u f"]
    first_bias: Float[Tensor, " u"]
    second: Float[Tensor, "n1 u"]
    second_bias: Float[Tensor, " n1"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        n, f = config.memory, config.image_dim + config.aligned_dim
        self.register_buffer("names", torch.zeros(n, config.text_dim))
        self.register_buffer("known", torch.zeros(n, dtype=torch.bool))
        for name, shape in zip(PARTS, ((UNITS, f), (UNITS,), (n + 1, UNITS), (n + 1,)), strict=True):
            self.register_buffer(name, torch.zeros(shape))
            self.register_buffer(f"cross_{name}", torch.zeros(0, *shape), persistent=False)

    def look(
        self,
        visual: Float[Tensor, "b v p"],
        log: Float[Tensor, "b m p"],
        portion: Int[Tensor, " b"] | None = None,
    ) -> Recalled:
        """What every remembered name says of every patch, whatever the labels.

        Args:
            visual, log: unit tokens and centred log-posterior, the `features`; not put together here, for the
                perceptron's first step is linear.
            portion: of each image among the training images; None or -1 reads what all of them taught.
        """
        first, first_bias, second, second_bias = self._of(portion, visual.shape[0])
        of_visual, of_log = first.split([visual.shape[1], log.shape[1]], dim=2)
        units = F.gelu(torch.baddbmm(of_visual @ visual + first_bias[..., None], of_log, log))
        scores = second @ units + second_bias[..., None]  # (B, N + 1, P)
        unknown = F.pad(~self.known, (0, 1))[:, None]
        shares = scores.masked_fill(unknown, -torch.inf).softmax(dim=1)
        return Recalled(scores[:, :-1] - scores[:, -1:], shares[:, :-1])

    def forward(
        self, recalled: Recalled, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k c p"]:
        """The maps.

        Args:
            text: unit label embeddings.
            hidden: labels that must do without the names that stand for them, as an unseen word does.
        """
        cosines = text @ self.names.T  # (B, K, N)
        unread = (~self.known).expand_as(cosines)
        if hidden is not None:
            unread = unread | (hidden[..., None] & (cosines > TELLING))
        cosines = cosines.masked_fill(unread, -1.0)
        near = (cosines / NEARBY).softmax(dim=-1)
        side = near @ recalled.sides
        share = (near @ recalled.shares + FLOOR).log()
        trust = cosines.amax(dim=-1, keepdim=True).expand_as(side)
        return torch.stack([side / 4.0, (share + 6.0) / 2.5, 2.0 * trust - 1.0], dim=2)

    def _of(self, portion: Int[Tensor, " b"] | None, b: int) -> list[Tensor]:
        """The perceptron (`PARTS`) for each image, each part with the images in front."""
        whole = [getattr(self, name).expand(b, *getattr(self, name).shape) for name in PARTS]
        cross = [getattr(self, f"cross_{name}") for name in PARTS]
        if portion is None or not len(cross[0]):
            return whole
        left_out, read = portion >= 0, portion.clamp_min(0)
        return [
            torch.where(left_out.view(b, *[1] * (all_.ndim - 1)), one[read], all_)
            for one, all_ in zip(cross, whole, strict=True)
        ]


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
