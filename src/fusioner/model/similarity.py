"""Similarity channels: how much each patch looks like each label, as a frozen aligned encoder sees it.

Beyond the paper. Masks that follow from a similarity map carry over to words never trained on, because the network
learns to read maps, not words (cost aggregation, as in CAT-Seg, arXiv 2303.11797, rather than feature aggregation).
Letters: B images, K labels, D text width, M anchor names, Gh Gw grid, C channels, W fusion width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig
from fusioner.model.memory import CHANNELS, Memory, features, log_posterior

# Chosen on training images by how well single patches are told apart without any training, see docs/accuracy.md.
NEARBY = 0.06  # softmax temperature over a label's cosines with the anchor names
SOFT = 2.0  # softmax temperature of the softened posterior
FLOOR = 1e-5  # posterior mass below which a label counts as absent


class Similarity(nn.Module):
    """Aligned tokens and label embeddings -> what to add to the visual tokens of each label.

    "cosine": aligned tokens live in the text encoder's space, as CLIP's do; one channel, their cosine with the label.
    "posterior": aligned tokens are a classifier's posterior over M named classes, scaled to unit length. Each label
    spreads over the names nearest to it in text space, and reads three channels there: the log of the softened
    posterior mass, the mean logit, and the z-score of ConSE's cosine (arXiv 1312.5650) among those of all M names.
    With `config.memory` three channels more say what trained classes of nearby names look like (`model.memory`).
    Every map comes twice: as it is, and as its maximum over the image, which says whether the label is there at all.
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.kind = config.similarity
        self.memory = Memory(config) if config.memory else None
        channels = 2 * ((3 if self.kind == "posterior" else 1) + (CHANNELS if self.memory else 0))
        self.proj = nn.Sequential(nn.Linear(channels, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        if self.kind == "posterior":
            self.register_buffer("anchors", torch.zeros(config.aligned_dim, config.text_dim))

    anchors: Float[Tensor, "m d"]

    def forward(
        self,
        visual: Float[Tensor, "b v gh gw"],
        aligned: Float[Tensor, "b a gh gw"],
        text: Float[Tensor, "b k d"],
        hidden: Bool[Tensor, "b k"] | None = None,
        portion: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b k n w"]:
        """Guidance for each label's visual tokens, in row-major grid order; `hidden` and `portion` as in `Memory`."""
        if self.kind == "cosine":
            maps = self.cosine_maps(aligned, text)
        else:
            log_p = log_posterior(aligned)
            maps = self.posterior_maps(log_p, text)
            if self.memory is not None:
                maps = torch.cat([maps, self.memory(features(visual, log_p), text, hidden, portion)], dim=2)
        maps = maps.flatten(3)  # (B, K, C, N)
        peaks = maps.amax(dim=3, keepdim=True).expand_as(maps)
        return self.proj(torch.cat([maps, peaks], dim=2).transpose(2, 3))

    def cosine_maps(
        self, aligned: Float[Tensor, "b d gh gw"], text: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b k 1 gh gw"]:
        """The one channel of tokens that live in text space, about unit scale."""
        return 10.0 * torch.einsum("bdhw,bkd->bkhw", aligned, text)[:, :, None]

    def posterior_maps(
        self, log_p: Float[Tensor, "b m gh gw"], text: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b k c gh gw"]:
        """The channels read from a posterior, each about unit scale."""
        near = (text @ self.anchors.T / NEARBY).softmax(dim=-1)  # (B, K, M)
        mass = torch.einsum("bmhw,bkm->bkhw", (log_p / SOFT).softmax(dim=1), near)
        logit = torch.einsum("bmhw,bkm->bkhw", log_p - log_p.mean(dim=1, keepdim=True), near)
        return torch.stack(
            [((mass + FLOOR).log() + 6.0) / 2.5, logit / 4.0, self._conse_z(log_p.exp(), text) / 2.0], dim=2
        )

    def _conse_z(self, p: Float[Tensor, "b m gh gw"], text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k gh gw"]:
        token = F.normalize(torch.einsum("bmhw,md->bdhw", p, self.anchors), dim=1)
        mean = torch.einsum("bdhw,d->bhw", token, self.anchors.mean(dim=0))
        centred = (self.anchors - self.anchors.mean(dim=0)).T  # not torch.cov, which no graph can hold
        spread = centred @ centred.T / len(self.anchors)
        variance = torch.einsum("bdhw,bdhw->bhw", token, torch.einsum("de,behw->bdhw", spread, token))
        cosine = torch.einsum("bdhw,bkd->bkhw", token, text)
        return (cosine - mean[:, None]) / variance.clamp_min(1e-8).sqrt()[:, None]
