"""What stands in the place of the fusion in the baselines; docs/baselines.md says how close each is to its paper.

Letters: B images, N visual tokens, K labels, D text width, M words, Gh Gw token grid.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig

WORDS = 200
"""Words that a label's cosine is compared with."""
LEVEL = 2.5
"""Standard deviations above the mean of those words' cosines from which a label is claimed, unless it was chosen on
training images (`training.free`)."""
NEVER = -20.0


class Projection(nn.Module):
    """LSeg's (arXiv 2201.03546) way from patches to text space: one trained linear map; labels stay as they are.

    Takes and gives what `Fusion` does: (B, N, Dv) and (B, K, D) -> (B, N, D) and (B, K, D).
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.visual_dim, config.text_dim)

    def forward(
        self, visual: Float[Tensor, "b n dv"], text: Float[Tensor, "b k d"], extra: None = None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k d"]]:
        """`extra` is not for it: without fusion there is nothing to guide."""
        return self.proj(visual), text


class Free(nn.Module):
    """Nothing is trained: what an aligned encoder says of a patch is compared with the label, as it is.

    A label's cosine with a patch means little by itself: any text has some cosine with anything, and how much differs
    from encoder to encoder and from patch to patch. So it is read as its distance from the mean cosine of a fixed list
    of other words with that very patch, in their standard deviations. Labels keep their order at every patch, so the
    likeliest of several is the one of the highest cosine; a probability of 0.5 means `level` standard deviations.

    "empty" predicts no label anywhere.

    Attributes:
        words: unit embeddings of the words compared with, filled by `training.free.fill_words`.
        level: standard deviations at which a label is as likely as not.
        anchors: where the tokens are a classifier's posterior, the unit embeddings of its class names: a token is
            their mean weighted by it (ConSE, arXiv 1312.5650).
    """

    words: Float[Tensor, "m d"]
    level: Float[Tensor, ""]
    anchors: Float[Tensor, "a d"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.silent = config.method == "empty"
        self.posterior = config.similarity == "posterior"
        if self.silent:
            return
        self.register_buffer("words", torch.zeros(WORDS, config.text_dim))
        self.register_buffer("level", torch.tensor(LEVEL))
        if self.posterior:
            self.register_buffer("anchors", torch.zeros(config.aligned_dim, config.text_dim))

    def forward(self, aligned: Float[Tensor, "b a gh gw"], text: Float[Tensor, "b k d"]) -> Float[Tensor, "b k gh gw"]:
        """Logits on the token grid."""
        if self.silent:
            return aligned.new_full((*text.shape[:2], *aligned.shape[-2:]), NEVER)
        token = torch.einsum("bahw,ad->bdhw", aligned, self.anchors) if self.posterior else aligned
        token = F.normalize(token, dim=1)
        cosine = torch.einsum("bdhw,bkd->bkhw", token, text)
        others = torch.einsum("bdhw,md->bmhw", token, self.words)
        spread, mean = torch.std_mean(others, dim=1, keepdim=True)
        return (cosine - mean) / spread.clamp_min(1e-6) - self.level
