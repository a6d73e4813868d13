"""Similarity channels: how much each patch looks like each label, as a frozen aligned encoder sees it.

Beyond the paper. Masks that follow from a similarity map carry over to words never trained on, because the network
learns to read maps, not words (cost aggregation, as in CAT-Seg, arXiv 2303.11797, rather than feature aggregation).
Letters: B images, K labels, D text width, M anchor names, H wider kinds, P patches, C channels, W fusion width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.closed_set_head import CHANNELS, NEARBY, Memory, Recalled, centred, posterior
from fusioner.model.config import FusionerConfig

# Chosen on training images by how well single patches are told apart without any training, see docs/accuracy.md.
SOFT = 2.0  # softmax temperature of the softened posterior
FLOOR = 1e-5  # posterior mass below which a label counts as absent
SHARPNESS = 5.0  # how much more a patch counts that is more alike
RAMP = 0.001  # cosines over which a patch fades in
GENERAL = 0.05  # what a kind's cosine loses by the logarithm of how many names it covers
DEPTH = 20  # places for the kinds of a name, of which WordNet gives none more than 19
SIDEWAYS = 32  # width of the short way from maps to logits


class Seen(NamedTuple):
    """What there is to say of images whatever the labels, so that it is said once an image.

    Attributes:
        tokens: aligned tokens in text space: as they are ("cosine"), or ConSE's ("posterior", and all that follows).
        soft, log: the softened posterior, and the logarithm of the posterior less its mean.
        mean, spread: of the cosines of a token with all M names.
        alike: how much of patch j there is in an average over the patches that are like patch i; rows add up to 1.
        recalled: what the memory says, where there is one.
    """

    tokens: Float[Tensor, "b d p"]
    soft: Float[Tensor, "b m p"] | None = None
    log: Float[Tensor, "b m p"] | None = None
    mean: Float[Tensor, "b p"] | None = None
    spread: Float[Tensor, "b p"] | None = None
    alike: Float[Tensor, "b p p"] | None = None
    recalled: Recalled | None = None


class Similarity(nn.Module):
    """What is seen in an image (`look`) and label embeddings -> what to add to the visual tokens of each label.

    "cosine": aligned tokens live in the text encoder's space, as CLIP's do; one channel, their cosine with the label.
    "posterior": aligned tokens are a classifier's posterior over M named classes, scaled to unit length. Each label
    spreads over the names nearest to it in text space, and reads three channels there: the log of the softened
    posterior mass, the mean logit, and the z-score of ConSE's cosine (arXiv 1312.5650) among those of all M names.
    With `config.kinds` half of a label's share goes to names that are a kind of it, however they are called: a tabby
    is a cat. There a name is as near as the nearest of its WordNet hypernyms, less a little the more that one covers.
    With `config.memory` three channels more say what trained classes of nearby names look like, and one, the same
    everywhere, how near those names are (`model.memory`).
    With `config.affinity` every map is read once more, averaged over the patches that the visual encoder finds alike:
    what an aligned encoder says of an object's head then holds for its legs (as in ProxyCLIP, arXiv 2408.04883).
    Every map comes twice: as it is, and as its maximum over the image, which says whether the label is there at all.
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.kind = config.similarity
        self.memory = Memory(config) if config.memory else None
        self.affinity = config.affinity
        maps = (3 if self.kind == "posterior" else 1) + (CHANNELS if self.memory else 0)
        channels = 2 * maps * (2 if self.affinity else 1) + (1 if self.memory else 0)
        self.proj = nn.Sequential(nn.Linear(channels, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.direct = None
        if config.direct:
            self.direct = nn.Sequential(nn.Linear(channels, SIDEWAYS), nn.GELU(), nn.Linear(SIDEWAYS, 1))
            for of_last in self.direct[2].parameters():  # at first it says nothing
                nn.init.zeros_(of_last)
        if self.kind == "posterior":
            self.register_buffer("anchors", torch.zeros(config.aligned_dim, config.text_dim))
        self.has_kinds = config.kinds > 0
        if self.has_kinds:
            self.register_buffer("kinds", torch.zeros(config.kinds, config.text_dim))
            self.register_buffer("cost", torch.zeros(config.kinds))
            self.register_buffer("above", torch.full((config.aligned_dim, DEPTH), config.kinds))

    anchors: Float[Tensor, "m d"]
    kinds: Float[Tensor, "h d"]
    cost: Float[Tensor, " h"]
    above: Int[Tensor, "m depth"]

    def learn_kinds(self, kinds: Float[Tensor, "h d"], above: Int[Tensor, "m most"]) -> None:
        """Take over the kinds' unit embeddings, and which, `DEPTH` at most, are above each name; H: no more."""
        covered = torch.bincount(above.flatten(), minlength=len(kinds) + 1)[:-1].clamp_min(1)
        self.kinds.copy_(kinds)
        self.cost.copy_(GENERAL * covered.log())
        self.above[:, : above.shape[1]] = above

    def look(
        self,
        visual: Float[Tensor, "b v gh gw"],
        aligned: Float[Tensor, "b a gh gw"],
        portion: Int[Tensor, " b"] | None = None,
    ) -> Seen:
        """What labels are compared with; `portion` as in `Memory`."""
        seen = self.read(aligned.flatten(2))
        recalled = None
        if self.memory is not None and seen.log is not None:
            recalled = self.memory.look(visual.flatten(2), seen.log, portion)
        alike = affinity(visual.flatten(2)) if self.affinity else None
        return seen._replace(alike=alike, recalled=recalled)

    def read(self, aligned: Float[Tensor, "b a p"]) -> Seen:
        """What aligned tokens say, each by itself."""
        if self.kind == "cosine":
            return Seen(aligned)
        p = posterior(aligned)
        log = centred(p.log())
        token = F.normalize(self.anchors.T @ p, dim=1)
        centre = self.anchors.mean(dim=0)
        off = (self.anchors - centre).T  # not torch.cov, which no graph can hold
        mean, variance = centre @ token, (token * (off @ off.T / len(self.anchors) @ token)).sum(dim=1)
        return Seen(token, (log / SOFT).softmax(dim=1), log, mean, variance.clamp_min(1e-8).sqrt())

    def forward(
        self, seen: Seen, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k p w"], Float[Tensor, "b k p"] | None]:
        """Guidance for each label's visual tokens, in row-major grid order, and with `config.direct` what there is to
        add to its logits; `hidden` as in `Memory`."""
        maps, near = self.maps(seen, text), None
        if self.memory is not None and seen.recalled is not None:
            recalled, near = self.memory(seen.recalled, text, hidden)
            maps = torch.cat([maps, recalled], dim=2)
        if seen.alike is not None:
            maps = torch.cat([maps, maps @ seen.alike.transpose(1, 2)[:, None]], dim=2)
        peaks = maps.amax(dim=3, keepdim=True).expand_as(maps)
        read = torch.cat([maps, peaks], dim=2).transpose(2, 3)
        if near is not None:
            read = torch.cat([read, near[..., None, None].expand(*read.shape[:3], 1)], dim=3)
        return self.proj(read), None if self.direct is None else self.direct(read)[..., 0]

    def near(self, text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k m"]:
        """How a label spreads over the anchor names; adds up to 1."""
        cosine = text @ self.anchors.T
        near = (cosine / NEARBY).softmax(dim=-1)
        if not self.has_kinds:
            return near
        wide = text @ self.kinds.T - self.cost
        wide = F.pad(wide, (0, 1), value=-1.0).index_select(2, self.above.flatten()).unflatten(2, self.above.shape)
        wider = torch.maximum(cosine, wide.amax(dim=-1))
        return (near + (wider / NEARBY).softmax(dim=-1)) / 2

    def maps(self, seen: Seen, text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k c p"]:
        """The channels that need no memory, each about unit scale."""
        cosine = text @ seen.tokens
        if seen.soft is None or seen.log is None or seen.mean is None or seen.spread is None:
            return 10.0 * cosine[:, :, None]
        near = self.near(text)
        # The logs add up to 0: less the mean share, the large ones no longer cancel each other in the last digits.
        mass, logit = near @ seen.soft, (near - 1 / near.shape[2]) @ seen.log
        z = (cosine - seen.mean[:, None]) / seen.spread[:, None]
        return torch.stack([((mass + FLOOR).log() + 6.0) / 2.5, logit / 4.0, z / 2.0], dim=2)


def affinity(visual: Float[Tensor, "b v p"]) -> Float[Tensor, "b p p"]:
    """How much each patch counts in an average over those like it; rows add up to 1.

    A softmax over cosines, of those alone that are above the image's mean cosine. They fade in within `RAMP` about it,
    for at a cliff the last digit of a cosine, which no two machines share, would decide.
    """
    visual = F.normalize(visual, dim=1)
    cosine = visual.transpose(1, 2) @ visual
    above = cosine - cosine.mean(dim=(1, 2), keepdim=True)
    weights = (SHARPNESS * above).exp() * (above / RAMP + 0.5).clamp(0.0, 1.0)
    return weights / weights.sum(dim=2, keepdim=True)
