"""Similarity maps: the similarity of each patch and each label by a frozen text-aligned encoder.

Beyond the paper. Masks predicted from similarity maps generalise to unseen words, because the network learns to read
maps, not words (cost aggregation, as in CAT-Seg, arXiv 2303.11797, rather than feature aggregation).
Letters: B images, K labels, D text width, M class names, H hypernyms, P patches, C maps, W fusion width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.closed_set_head import (
    NAME_TEMPERATURE,
    NUM_MAPS,
    ClosedSetHead,
    ClosedSetScores,
    centre,
    posterior,
)
from fusioner.model.config import FusionerConfig

# Tuned on training images by the accuracy of single patches without training, see docs/accuracy.md.
SOFTMAX_TEMPERATURE = 2.0  # of the softened posterior
MIN_MASS = 1e-5  # of the posterior, below which a label counts as absent
AFFINITY_SHARPNESS = 5.0  # of the weights of similar patches
AFFINITY_RAMP = 0.001  # range of cosines over which a patch fades in
HYPERNYM_COST = 0.05  # reduction of a hypernym's cosine per log of its number of names
MAX_PARENTS = 20  # hypernyms of a name; WordNet has at most 19
RESIDUAL_WIDTH = 32  # of the residual head


class ImageFeatures(NamedTuple):
    """Label-independent features of images, computed once per image.

    Attributes:
        tokens: in text space: the aligned tokens ("cosine") or ConSE's ("posterior", like all that follows).
        soft, log: softened posterior and centred log-posterior.
        mean, spread: of the cosines of a token with all M names.
        affinity: weight of patch j in the average over the patches similar to patch i; rows sum to 1.
        closed_set: scores of the closed-set head, if there is one.
    """

    tokens: Float[Tensor, "b d p"]
    soft: Float[Tensor, "b m p"] | None = None
    log: Float[Tensor, "b m p"] | None = None
    mean: Float[Tensor, "b p"] | None = None
    spread: Float[Tensor, "b p"] | None = None
    affinity: Float[Tensor, "b p p"] | None = None
    closed_set: ClosedSetScores | None = None


class Similarity(nn.Module):
    """Image features (`encode_image`) and label embeddings -> guidance, which is added to each label's visual tokens.

    "cosine": the tokens live in the text encoder's space, as CLIP's do; one map, their cosine with the label.
    "posterior": the tokens are a classifier's posterior over M named classes, scaled to unit length. Each label is
    matched to the names nearest to it in text space, with three maps: the log of the softened posterior mass, the mean
    logit, and the z-score of ConSE's cosine (arXiv 1312.5650) among those of all M names.
    With `config.num_hypernyms` half of a label's weight goes to names that are hyponyms of it: a tabby is a cat. There
    the cosine of a name is the largest one of its WordNet hypernyms, reduced by their number of names.
    With `config.closed_set_classes` there are three more maps and one number per label (`model.closed_set_head`).
    With `config.affinity_refinement` every map is repeated, averaged over patches that the visual encoder finds
    similar, which spreads evidence from an object's head to its legs (as in ProxyCLIP, arXiv 2408.04883).
    Every map is read twice: as it is, and as its maximum over the image, evidence for the label's presence.
    """

    anchors: Float[Tensor, "m d"]
    hypernyms: Float[Tensor, "h d"]
    hypernym_cost: Float[Tensor, " h"]
    parents: Int[Tensor, "m depth"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.kind = config.similarity
        self.closed_set = ClosedSetHead(config) if config.closed_set_classes else None
        self.affinity_refinement = config.affinity_refinement
        maps = (3 if self.kind == "posterior" else 1) + (NUM_MAPS if self.closed_set else 0)
        channels = 2 * maps * (2 if self.affinity_refinement else 1) + (1 if self.closed_set else 0)
        self.proj = nn.Sequential(nn.Linear(channels, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        self.residual_head = None
        if config.residual_head:
            self.residual_head = nn.Sequential(
                nn.Linear(channels, RESIDUAL_WIDTH), nn.GELU(), nn.Linear(RESIDUAL_WIDTH, 1)
            )
            for parameter in self.residual_head[2].parameters():  # starts at zero
                nn.init.zeros_(parameter)
        if self.kind == "posterior":
            self.register_buffer("anchors", torch.zeros(config.similarity_dim, config.text_dim))
        self.has_hypernyms = config.num_hypernyms > 0
        if self.has_hypernyms:
            self.register_buffer("hypernyms", torch.zeros(config.num_hypernyms, config.text_dim))
            self.register_buffer("hypernym_cost", torch.zeros(config.num_hypernyms))
            no_parent = config.num_hypernyms
            self.register_buffer("parents", torch.full((config.similarity_dim, MAX_PARENTS), no_parent))

    def set_hypernyms(self, hypernyms: Float[Tensor, "h d"], parents: Int[Tensor, "m n"]) -> None:
        """Set the hypernyms' unit embeddings and the hypernyms of each name, at most `MAX_PARENTS`; H: none."""
        names = torch.bincount(parents.flatten(), minlength=len(hypernyms) + 1)[:-1].clamp_min(1)
        self.hypernyms.copy_(hypernyms)
        self.hypernym_cost.copy_(HYPERNYM_COST * names.log())
        self.parents[:, : parents.shape[1]] = parents

    def encode_image(
        self,
        visual: Float[Tensor, "b v gh gw"],
        aligned: Float[Tensor, "b a gh gw"],
        split: Int[Tensor, " b"] | None = None,
    ) -> ImageFeatures:
        """Compute label-independent features; `split` as in `ClosedSetHead`."""
        features = self.embed_tokens(aligned.flatten(2))
        scores = None
        if self.closed_set is not None and features.log is not None:
            scores = self.closed_set.encode_image(visual.flatten(2), features.log, split)
        weights = affinity(visual.flatten(2)) if self.affinity_refinement else None
        return features._replace(affinity=weights, closed_set=scores)

    def embed_tokens(self, aligned: Float[Tensor, "b a p"]) -> ImageFeatures:
        """Compute the features of each token alone."""
        if self.kind == "cosine":
            return ImageFeatures(aligned)
        p = posterior(aligned)
        log = centre(p.log())
        token = F.normalize(self.anchors.T @ p, dim=1)
        mean_anchor = self.anchors.mean(dim=0)
        deviation = (self.anchors - mean_anchor).T  # torch.cov cannot be exported
        covariance = deviation @ deviation.T / len(self.anchors)
        mean, variance = mean_anchor @ token, (token * (covariance @ token)).sum(dim=1)
        soft = (log / SOFTMAX_TEMPERATURE).softmax(dim=1)
        return ImageFeatures(token, soft, log, mean, variance.clamp_min(1e-8).sqrt())

    def forward(
        self, features: ImageFeatures, text: Float[Tensor, "b k d"], hidden: Bool[Tensor, "b k"] | None = None
    ) -> tuple[Float[Tensor, "b k p w"], Float[Tensor, "b k p"] | None]:
        """Return the guidance of each label's visual tokens (row-major grid order) and the residual logits, if any.

        `hidden` as in `ClosedSetHead`.
        """
        maps, nearest = self.maps(features, text), None
        if self.closed_set is not None and features.closed_set is not None:
            closed_set_maps, nearest = self.closed_set(features.closed_set, text, hidden)
            maps = torch.cat([maps, closed_set_maps], dim=2)
        if features.affinity is not None:
            maps = torch.cat([maps, maps @ features.affinity.transpose(1, 2)[:, None]], dim=2)
        peaks = maps.amax(dim=3, keepdim=True).expand_as(maps)
        inputs = torch.cat([maps, peaks], dim=2).transpose(2, 3)
        if nearest is not None:
            inputs = torch.cat([inputs, nearest[..., None, None].expand(*inputs.shape[:3], 1)], dim=3)
        return self.proj(inputs), None if self.residual_head is None else self.residual_head(inputs)[..., 0]

    def anchor_weights(self, text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k m"]:
        """Return each label's weights of the class names; they sum to 1."""
        cosine = text @ self.anchors.T
        weights = (cosine / NAME_TEMPERATURE).softmax(dim=-1)
        if not self.has_hypernyms:
            return weights
        above = text @ self.hypernyms.T - self.hypernym_cost
        above = F.pad(above, (0, 1), value=-1.0).index_select(2, self.parents.flatten())
        cosine = torch.maximum(cosine, above.unflatten(2, self.parents.shape).amax(dim=-1))
        return (weights + (cosine / NAME_TEMPERATURE).softmax(dim=-1)) / 2

    def maps(self, features: ImageFeatures, text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k c p"]:
        """Return the similarity maps without the closed-set head's, each about unit scale."""
        cosine = text @ features.tokens
        if features.soft is None or features.log is None or features.mean is None or features.spread is None:
            return 10.0 * cosine[:, :, None]
        weights = self.anchor_weights(text)
        # The logs sum to 0: without the mean weight, large ones do not cancel each other in the last digits.
        mass, logit = weights @ features.soft, (weights - 1 / weights.shape[2]) @ features.log
        z = (cosine - features.mean[:, None]) / features.spread[:, None]
        return torch.stack([((mass + MIN_MASS).log() + 6.0) / 2.5, logit / 4.0, z / 2.0], dim=2)


def affinity(visual: Float[Tensor, "b v p"]) -> Float[Tensor, "b p p"]:
    """Return the weight of each patch in an average over patches similar to it; rows sum to 1.

    A softmax over the cosines above the image's mean cosine. They fade in within `AFFINITY_RAMP` around it: with a hard
    limit, rounding errors of a cosine would decide.
    """
    visual = F.normalize(visual, dim=1)
    cosine = visual.transpose(1, 2) @ visual
    above = cosine - cosine.mean(dim=(1, 2), keepdim=True)
    weights = (AFFINITY_SHARPNESS * above).exp() * (above / AFFINITY_RAMP + 0.5).clamp(0.0, 1.0)
    return weights / weights.sum(dim=2, keepdim=True)
