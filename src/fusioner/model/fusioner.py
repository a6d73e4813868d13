"""The trained network: from image tokens and label embeddings to logits.

Letters: B images, K labels, D channels, Gh Gw token grid, H W pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.baselines import Projection, ZeroShotBaseline
from fusioner.model.config import TRAINING_FREE, UNDECODED, FusionerConfig
from fusioner.model.decoder import Decoder
from fusioner.model.fusion import Fusion
from fusioner.model.head import cosine_logits
from fusioner.model.similarity import ImageFeatures, Similarity


class Fusioner(nn.Module):
    """Fusion, decoder and cosine head over the outputs of frozen encoders.

    With `config.similarity == "none"` this is the paper's network: all labels of an image are fused together, and a
    label's mask may depend on the other labels. With a similarity (beyond the paper) each label is fused separately
    with shared weights, guided by its similarity maps.

    `config.method` selects a baseline instead (docs/baselines.md), with the same inputs and outputs.
    """

    fusion: Fusion | Projection
    baseline: ZeroShotBaseline | None
    decoder: Decoder | None
    similarity: Similarity | None
    neutral: Float[Tensor, " dt"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = self.similarity = None
        self.baseline = ZeroShotBaseline(config) if config.method in TRAINING_FREE else None
        if self.baseline:
            return
        self.fusion = Projection(config) if config.method == "lseg" else Fusion(config)
        self.decoder = Decoder(config) if config.method not in UNDECODED else None
        self.similarity = Similarity(config) if config.similarity != "none" else None
        if config.method == "prompt-ablated":
            self.register_buffer("neutral", torch.zeros(config.text_dim))
        if config.logit_bias:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / config.temperature)))
            self.logit_bias = nn.Parameter(torch.tensor(-2.0))

    def forward(
        self,
        tokens: Float[Tensor, "b d gh gw"],
        text: Float[Tensor, "b k dt"],
        size: tuple[int, int] | None = None,
        split: Int[Tensor, " b"] | None = None,
        features: ImageFeatures | None = None,
    ) -> Float[Tensor, "b k h w"]:
        """Return the logits of every label at every pixel.

        Args:
            tokens: unit-length image tokens on any grid; similarity channels, if configured, come last.
            text: unit-length label embeddings, any number of labels.
            size: (H, W) of the logits; None: the decoder's resolution, 8x the grid with four decoder widths.
            split: in training, the cross-fitting split of each image, see `closed_set_head`.
            features: `encode_image(tokens)`, to reuse it for several queries.
        """
        b, k = text.shape[:2]
        if self.baseline is not None:
            return _resize(self.baseline(self.split_channels(tokens)[1], text), size)
        if self.config.method == "prompt-ablated":  # all labels have the neutral embedding, so one is computed
            text = self.neutral.expand(b, 1, -1)
        n, visual, guidance, residual = text.shape[1], tokens, None, None
        if self.similarity is not None:
            hidden = self._dropped_prompts(b, n, text.device)
            features = self.encode_image(tokens, split) if features is None else features
            guidance, residual = self.similarity(features, text, hidden if self.training else None)
            visual = self.split_channels(tokens)[0]
            text = (text * ~hidden[..., None]).reshape(b * n, 1, -1)
        patches, classes = self.fusion(visual.flatten(2).transpose(1, 2), text, guidance)
        grid = patches.transpose(1, 2).unflatten(2, tokens.shape[-2:])
        logits = self._decode(grid, classes, size)
        logits = logits.view(b, n, *logits.shape[-2:])
        if residual is not None:
            logits = logits + _resize(residual.unflatten(2, tokens.shape[-2:]), (logits.shape[2], logits.shape[3]))
        return logits.expand(-1, k, -1, -1) if n != k else logits

    def encode_image(
        self, tokens: Float[Tensor, "b d gh gw"], split: Int[Tensor, " b"] | None = None
    ) -> ImageFeatures | None:
        """Compute label-independent image features (None if there are none); `split` as in `forward`."""
        return None if self.similarity is None else self.similarity.encode_image(*self.split_channels(tokens), split)

    def split_channels(self, tokens: Float[Tensor, "b d gh gw"]) -> tuple[Tensor, Tensor]:
        """Separate visual tokens and similarity channels."""
        similarity_dim = self.config.similarity_dim
        visual, similarity = tokens.split([tokens.shape[1] - similarity_dim, similarity_dim], dim=1)
        return visual if self.config.image_dim else tokens, similarity

    def _dropped_prompts(self, b: int, k: int, device: torch.device) -> Bool[Tensor, "b k"]:
        """Draw the labels whose embedding is hidden from the fusion (prompt dropout; always all at rate 1)."""
        rate = self.config.prompt_dropout
        if rate == 0.0 or (rate < 1.0 and not self.training):
            return torch.zeros(b, k, dtype=torch.bool, device=device)
        return torch.rand(b, k, device=device) < rate

    def _decode(
        self, grid: Float[Tensor, "b w gh gw"], classes: Float[Tensor, "b k c"], size: tuple[int, int] | None
    ) -> Float[Tensor, "b k h w2"]:
        temperature = 1.0 if self.config.logit_bias else self.config.temperature
        if self.decoder is None:
            logits = cosine_logits(grid, classes, temperature)
        else:
            logits = cosine_logits(self.decoder(grid), classes, temperature, size)
        if self.config.logit_bias:
            logits = logits * self.logit_scale.exp() + self.logit_bias
        return _resize(logits, size) if self.decoder is None else logits


def _resize(logits: Float[Tensor, "b k gh gw"], size: tuple[int, int] | None) -> Float[Tensor, "b k h w"]:
    return logits if size is None else F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
