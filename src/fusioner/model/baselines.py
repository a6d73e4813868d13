"""Baselines in place of the fusion; docs/baselines.md says how close each is to its paper.

Letters: B images, N visual tokens, K labels, D text width, M words, Gh Gw token grid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig

NUM_REFERENCE_WORDS = 200
DEFAULT_ZSCORE = 2.5
"""Decision threshold of `ZeroShotBaseline`, unless it is calibrated on training images (`training.calibration`)."""
EMPTY_LOGIT = -20.0


class Projection(nn.Module):
    """LSeg's (arXiv 2201.03546) map from patches to text space: one trained linear layer; labels are unchanged.

    Same interface as `Fusion`: (B, N, Dv) and (B, K, D) -> (B, N, D) and (B, K, D).
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.visual_dim, config.text_dim)

    def forward(
        self, visual: Float[Tensor, "b n dv"], text: Float[Tensor, "b k d"], extra: None = None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"]]:
        """`extra` is unused: there is no fusion to guide."""
        return self.proj(visual), text


class ZeroShotBaseline(nn.Module):
    """Training-free: compare the tokens of a text-aligned encoder with the labels.

    A label's cosine with a patch depends on the encoder and the patch. It is therefore expressed as a z-score among the
    cosines of a fixed list of reference words with the same patch. The order of labels at a patch does not change, so
    the argmax is the label of the largest cosine; a probability of 0.5 means `zscore_threshold` standard deviations.

    "softmax" returns cosines divided by the temperature, for a softmax over the names (`labels.SoftmaxNames`). "empty"
    predicts no label anywhere.

    Attributes:
        reference_words: unit embeddings, set by `training.calibration.set_reference_words`.
        zscore_threshold: z-score of a probability of 0.5.
        anchors: for a classifier's posterior, unit embeddings of its class names: a token is their mean weighted by the
            posterior (ConSE, arXiv 1312.5650).
    """

    reference_words: Float[Tensor, "m d"]
    zscore_threshold: Float[Tensor, ""]
    anchors: Float[Tensor, "a d"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.is_empty, self.is_softmax = config.method == "empty", config.method == "softmax"
        self.posterior, self.temperature = config.similarity == "posterior", config.temperature
        if self.is_empty or self.is_softmax:
            return
        self.register_buffer("reference_words", torch.zeros(NUM_REFERENCE_WORDS, config.text_dim))
        self.register_buffer("zscore_threshold", torch.tensor(DEFAULT_ZSCORE))
        if self.posterior:
            self.register_buffer("anchors", torch.zeros(config.similarity_dim, config.text_dim))

    def forward(self, aligned: Float[Tensor, "b a gh gw"], text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k gh gw"]:
        """Return logits on the token grid."""
        if self.is_empty:
            return aligned.new_full((*text.shape[:2], *aligned.shape[-2:]), EMPTY_LOGIT)
        token = torch.einsum("bahw,ad->bdhw", aligned, self.anchors) if self.posterior else aligned
        token = F.normalize(token, dim=1)
        cosine = torch.einsum("bdhw,bkd->bkhw", token, text)
        if self.is_softmax:
            return cosine / self.temperature
        reference = torch.einsum("bdhw,md->bmhw", token, self.reference_words)
        spread, mean = torch.std_mean(reference, dim=1, keepdim=True)
        return (cosine - mean) / spread.clamp_min(1e-6) - self.zscore_threshold
