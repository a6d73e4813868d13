"""The whole trained network: tokens and text in, logits out.

Letters: B images, K labels, D channels, Gh Gw token grid, H W pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fusioner.model.baselines import Free, Projection
from fusioner.model.config import TRAINING_FREE, UNDECODED, FusionerConfig
from fusioner.model.decoder import Decoder
from fusioner.model.fusion import Fusion
from fusioner.model.head import cosine_logits
from fusioner.model.similarity import Seen, Similarity


class Fusioner(nn.Module):
    """Fusion, decoder and cosine head over the outputs of frozen encoders.

    With `config.similarity == "none"` this is the paper's network: all labels of an image are fused together, and a
    label's mask may depend on what else is asked for. With similarity every label runs apart
    through shared weights; it is guided by its own similarity to the image: beyond the paper, see docs.

    `config.method` names a baseline in its place (docs/baselines.md); all of them take and give the same.
    """

    fusion: Fusion | Projection
    decoder: Decoder | None
    similarity: Similarity | None
    neutral: Float[Tensor, " dt"]

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = self.similarity = None
        self.free = Free(config) if config.method in TRAINING_FREE else None
        if self.free is not None:
            return
        self.fusion = Projection(config) if config.method == "lseg" else Fusion(config)
        self.decoder = Decoder(config) if config.method not in UNDECODED else None
        self.similarity = Similarity(config) if config.similarity != "none" else None
        if config.method == "prompt-ablated":
            self.register_buffer("neutral", torch.zeros(config.text_dim))
        if config.logit_bias:
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / config.temperature)))
            self.logit_bias = nn.Parameter(torch.tensor(-2.0))

    @property
    def labels_independent(self) -> bool:
        """See `FusionerConfig`."""
        return self.config.labels_independent

    def forward(
        self,
        tokens: Float[Tensor, "b d gh gw"],
        text: Float[Tensor, "b k dt"],
        size: tuple[int, int] | None = None,
        portion: Int[Tensor, " b"] | None = None,
        seen: Seen | None = None,
    ) -> Float[Tensor, "b k h w"]:
        """Logits of every label at every pixel.

        Args:
            tokens: unit-length image tokens of any grid; aligned channels, where configured, come last.
            text: unit-length label embeddings, any number of labels.
            size: (H, W) of the answer; None keeps the decoder's own resolution, 8x the grid with four decoder widths.
            portion: in training, which portion of the training images each belongs to, see `model.memory`.
            seen: `look(tokens)`, for whoever asks more than once of the same images.
        """
        b, k = text.shape[:2]
        if self.free is not None:
            return _resized(self.free(self.split(tokens)[1], text), size)
        if self.config.method == "prompt-ablated":  # every name is the neutral text, so one answer is that of all
            return self._answer(tokens, self.neutral.expand(b, 1, -1), size, portion, seen).expand(-1, k, -1, -1)
        return self._answer(tokens, text, size, portion, seen)

    def _answer(
        self,
        tokens: Float[Tensor, "b d gh gw"],
        text: Float[Tensor, "b k dt"],
        size: tuple[int, int] | None,
        portion: Int[Tensor, " b"] | None,
        seen: Seen | None,
    ) -> Float[Tensor, "b k h w"]:
        b, k = text.shape[:2]
        if self.similarity is None:
            return self._fuse(tokens, text, None, size)
        hidden = self._hidden(b, k, text.device)
        seen = self.look(tokens, portion) if seen is None else seen
        guidance, direct = self.similarity(seen, text, hidden if self.training else None)
        text = text * ~hidden[..., None]
        logits = self._fuse(self.split(tokens)[0], text.reshape(b * k, 1, -1), guidance, size)
        logits = logits.view(b, k, *logits.shape[-2:])
        if direct is None:
            return logits
        return logits + _resized(direct.unflatten(2, tokens.shape[-2:]), (logits.shape[2], logits.shape[3]))

    def look(self, tokens: Float[Tensor, "b d gh gw"], portion: Int[Tensor, " b"] | None = None) -> Seen | None:
        """What of the answer depends on the images alone; None where nothing does. `portion` as in `forward`."""
        return None if self.similarity is None else self.similarity.look(*self.split(tokens), portion)

    def split(self, tokens: Float[Tensor, "b d gh gw"]) -> tuple[Tensor, Tensor]:
        """Visual tokens and aligned channels apart."""
        visual, aligned = tokens.split([tokens.shape[1] - self.config.aligned_dim, self.config.aligned_dim], dim=1)
        return visual if self.config.image_dim else tokens, aligned

    def _hidden(self, b: int, k: int, device: torch.device) -> Bool[Tensor, "b k"]:
        """Prompt dropout: labels whose words the fusion must do without; all of them always where the rate is 1."""
        rate = self.config.prompt_dropout
        if rate == 0.0 or (rate < 1.0 and not self.training):
            return torch.zeros(b, k, dtype=torch.bool, device=device)
        return torch.rand(b, k, device=device) < rate

    def _fuse(
        self,
        tokens: Float[Tensor, "b d gh gw"],
        text: Float[Tensor, "b k dt"],
        guidance: Float[Tensor, "b k n w"] | None,
        size: tuple[int, int] | None,
    ) -> Float[Tensor, "..."]:
        patches, classes = self.fusion(tokens.flatten(2).transpose(1, 2), text, guidance)
        grid = patches.transpose(1, 2).unflatten(2, tokens.shape[-2:])
        features, size_there = (grid, None) if self.decoder is None else (self.decoder(grid), size)
        temperature = 1.0 if self.config.logit_bias else self.config.temperature
        logits = cosine_logits(features, classes, temperature, size_there)
        if self.config.logit_bias:
            logits = logits * self.logit_scale.exp() + self.logit_bias
        return _resized(logits, size) if self.decoder is None else logits


def _resized(logits: Float[Tensor, "b k gh gw"], size: tuple[int, int] | None) -> Float[Tensor, "b k h w"]:
    return logits if size is None else F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
