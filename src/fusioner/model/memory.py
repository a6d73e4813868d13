"""A memory of the trained classes: what each looks like to the frozen encoders, found again by name.

Beyond the paper. A network this light needs long to learn hundreds of looks by gradient; linear discriminants with one
shared covariance (Fisher 1936) hold them in closed form, and the network only learns how far to trust them. A label
reads the discriminants of the names nearest to it in text space; how near they are is a channel of its own, so that an
unseen word is known as one. `training.memory` fits it.
Letters: B images, K labels, N remembered names, D text width, V visual width, F features, P patches, Gh Gw grid.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig

CHANNELS = 3
# Chosen on training images by how well single patches are told apart without any training, see docs/accuracy.md.
NEARBY = 0.06  # softmax temperature over a label's cosines with the names
SOFT = 4.0  # softmax temperature over the discriminants, which are surer than they should be
FLOOR = 1e-5  # share below which a name counts as absent
VISUAL, LOG = 10.0, 0.1  # weights of token and log-posterior in the features, which give them about equal spread
TELLING = 0.7  # cosine above which a name stands for the label itself


class Recalled(NamedTuple):
    """What the remembered names say of images, whatever the labels.

    Attributes:
        sides: how far a patch is on each name's side of its discriminant, in standard deviations.
        shares: of each name in a softmax over all of them and "anything else".
        unknown: names never seen.
    """

    sides: Float[Tensor, "b n p"]
    shares: Float[Tensor, "b n p"]
    unknown: Bool[Tensor, "b n"]


class Memory(nn.Module):
    """What an image recalls (`look`) and label embeddings -> three maps a label, each about unit scale.

    How far a patch is on the label's side of its discriminant, in standard deviations; the log of the label's share
    in a softmax over all names and "anything else"; and the cosine of the nearest name, the same everywhere.

    Attributes:
        names: unit embeddings of the remembered names.
        looks, floors, centre: discriminant n of features x is (x - centre) . looks[n] - floors[n]; a name never seen
            has looks of zero and is not read. The last, N, is "anything else".
        cross_looks, cross_floors, cross_centre: the same fitted without one portion of the training images each, for
            training on that portion: what was fitted to an image is surer of it than it will be of a new one. Empty
            outside training, and not saved.
    """

    names: Float[Tensor, "n d"]
    looks: Float[Tensor, "n1 f"]
    floors: Float[Tensor, " n1"]
    centre: Float[Tensor, " f"]
    cross_looks: Float[Tensor, "s n1 f"]
    cross_floors: Float[Tensor, "s n1"]
    cross_centre: Float[Tensor, "s f"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        n, f = config.memory, config.image_dim + config.aligned_dim
        shapes = {"looks": (n + 1, f), "floors": (n + 1,), "centre": (f,)}
        self.register_buffer("names", torch.zeros(n, config.text_dim))
        for name, shape in shapes.items():
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
            visual, log: unit tokens and centred log-posterior, of which `features` are made; not put together here, for
                the discriminants are linear.
            portion: of each image among the training images; None or -1 reads what all of them taught.
        """
        looks, floors, centre = self._of(portion, visual.shape[0])
        of_visual, of_log = looks.split([visual.shape[1], log.shape[1]], dim=2)
        scores = torch.baddbmm(looks @ centre[..., None] + floors[..., None], of_visual, visual, beta=-1, alpha=VISUAL)
        scores = torch.baddbmm(scores, of_log, log, alpha=LOG)  # (B, N + 1, P)
        deviations = (2 * floors).sqrt().clamp_min(1.0)[..., None]
        shares = (scores / SOFT).softmax(dim=1)
        return Recalled((scores / deviations)[:, :-1], shares[:, :-1], floors[:, :-1] == 0)

    def forward(
        self, recalled: Recalled, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k c p"]:
        """The maps.

        Args:
            text: unit label embeddings.
            hidden: labels that must do without the names that stand for them, as an unseen word does.
        """
        cosines = text @ self.names.T  # (B, K, N)
        unknown = recalled.unknown[:, None].expand_as(cosines)
        if hidden is not None:
            unknown = unknown | (hidden[..., None] & (cosines > TELLING))
        cosines = cosines.masked_fill(unknown, -1.0)
        near = (cosines / NEARBY).softmax(dim=-1)
        side = near @ recalled.sides
        share = (near @ recalled.shares + FLOOR).log()
        trust = cosines.amax(dim=-1, keepdim=True).expand_as(side)
        return torch.stack([side / 2.0, (share + 6.0) / 2.5, 2.0 * trust - 1.0], dim=2)

    def _of(self, portion: Int[Tensor, " b"] | None, b: int) -> tuple[Tensor, Tensor, Tensor]:
        """Looks (b, n1, f), floors (b, n1) and centre (b, f) for each image."""
        whole = [one.expand(b, *one.shape) for one in (self.looks, self.floors, self.centre)]
        if portion is None or not len(self.cross_looks):
            return whole[0], whole[1], whole[2]
        left_out = portion >= 0
        cross = [one[portion.clamp_min(0)] for one in (self.cross_looks, self.cross_floors, self.cross_centre)]
        chosen = [
            torch.where(left_out.view(b, *[1] * (all_.ndim - 1)), part, all_)
            for part, all_ in zip(cross, whole, strict=True)
        ]
        return chosen[0], chosen[1], chosen[2]


def features(
    visual: Float[Tensor, "b d gh gw"], log_posterior: Float[Tensor, "b m gh gw"]
) -> Float[Tensor, "b f gh gw"]:
    """What is remembered of a patch: its unit token and its centred log-posterior, scaled to about equal spread."""
    centred = log_posterior - log_posterior.mean(dim=1, keepdim=True)
    return torch.cat([VISUAL * visual, LOG * centred], dim=1)


def posterior(aligned: Float[Tensor, "b m *p"]) -> Float[Tensor, "b m *p"]:
    """A classifier's posterior, whatever its scale was; nothing is less likely than 1e-7."""
    return (aligned / aligned.sum(dim=1, keepdim=True).clamp_min(1e-6)).clamp_min(1e-7)


def log_posterior(aligned: Float[Tensor, "b m gh gw"]) -> Float[Tensor, "b m gh gw"]:
    """The logarithm of `posterior`."""
    return posterior(aligned).log()
