"""Similarity channels: how much each patch looks like each label, as a frozen aligned encoder sees it.

Beyond the paper. Masks that follow from a similarity map carry over to words never trained on, because the network
learns to read maps, not words (cost aggregation, as in CAT-Seg, arXiv 2303.11797, rather than feature aggregation).
Letters: B images, K labels, D text width, Gh Gw grid, M anchor names, W fusion width.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig


class Similarity(nn.Module):
    """Aligned tokens and label embeddings -> what to add to the visual tokens of each label.

    Two channels: the cosine, and its z-score among the cosines of the same patch with many anchor names (the aligned
    encoder's own vocabulary), which tells a match from a patch that is close to every word.
    """

    channels = 2

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(self.channels, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.register_buffer("anchor_mean", torch.zeros(config.aligned_dim))
        self.register_buffer("anchor_cov", torch.eye(config.aligned_dim) / config.aligned_dim)

    anchor_mean: Tensor
    anchor_cov: Tensor

    def set_anchors(self, anchors: Float[Tensor, "m d"]) -> None:
        """Keep mean and covariance of the anchor names' embeddings: all that the z-score needs of them."""
        self.anchor_mean.copy_(anchors.mean(0))
        self.anchor_cov.copy_(torch.cov(anchors.T, correction=0))

    def maps(
        self, aligned: Float[Tensor, "b d gh gw"], text: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b k c gh gw"]:
        """The raw channels, cosine first."""
        cosine = torch.einsum("bdhw,bkd->bkhw", aligned, text)
        mean = torch.einsum("bdhw,d->bhw", aligned, self.anchor_mean)
        variance = torch.einsum("bdhw,de,behw->bhw", aligned, self.anchor_cov, aligned)
        z = (cosine - mean[:, None]) / variance.clamp_min(1e-8).sqrt()[:, None]
        return torch.stack([cosine, z], dim=2)

    def forward(
        self, aligned: Float[Tensor, "b d gh gw"], text: Float[Tensor, "b k d"]
    ) -> Float[Tensor, "b k n w"]:
        """Guidance for each label's visual tokens, in row-major grid order."""
        return self.proj(self.maps(aligned, text).flatten(3).transpose(2, 3))
