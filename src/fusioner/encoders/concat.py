"""Several image encoders as one: their tokens on one grid, side by side."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.encoders.base import FrozenImageEncoder, ImageEncoder, state_digest
from fusioner.errors import FusionerError


class ConcatEncoder(FrozenImageEncoder):
    """Tokens of several image encoders, resampled (bilinear) to the first one's grid and concatenated along d.

    Each encoder's tokens are of unit length before and after the resampling, so all weigh the same; the whole is
    scaled to unit length again. `stride` is the first encoder's, `dim` the sum, `name` the names joined by "+".
    """

    def __init__(self, encoders: Sequence[ImageEncoder]) -> None:
        super().__init__()
        if not encoders:
            raise FusionerError("a list of image encoders needs at least one")
        self.encoders = nn.ModuleList(encoder for encoder in encoders if isinstance(encoder, nn.Module))
        self._parts = tuple(encoders)
        self.name = "+".join(encoder.name for encoder in encoders)
        self.dim = sum(encoder.dim for encoder in encoders)
        self.stride = encoders[0].stride
        self.freeze()

    @property
    def parts(self) -> Sequence[ImageEncoder]:
        return self._parts

    @property
    def mean(self) -> tuple[float, float, float]:
        """Normalisation of the first encoder; assigning another value gives it to every encoder of the list."""
        return self._parts[0].mean

    @mean.setter
    def mean(self, value: tuple[float, float, float]) -> None:
        self._spread("mean", value)

    @property
    def std(self) -> tuple[float, float, float]:
        """As `mean`."""
        return self._parts[0].std

    @std.setter
    def std(self, value: tuple[float, float, float]) -> None:
        self._spread("std", value)

    def _spread(self, name: str, value: Any) -> None:
        if tuple(value) != tuple(getattr(self, name)):  # writing back what was read must not touch the other encoders
            for encoder in self._parts:
                setattr(encoder, name, value)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """RGB in [0, 1] of any size -> unit-length tokens on the first encoder's grid."""
        first, *others = (encoder(images) for encoder in self._parts)  # each (b, d_i, gh_i, gw_i)
        resampled = [_resample(tokens, first.shape[-2:]) for tokens in others]
        return F.normalize(torch.cat([first, *(F.normalize(tokens, dim=1) for tokens in resampled)], dim=1), dim=1)

    def fingerprint(self) -> str:
        """Sha256 (hex) of the encoders' fingerprints, in order."""
        return state_digest(nn.Module(), [encoder.fingerprint() for encoder in self._parts])


def _resample(tokens: Float[Tensor, "b d gh gw"], size: torch.Size) -> Float[Tensor, "b d gh2 gw2"]:
    if tokens.shape[-2:] == size:
        return tokens
    return F.interpolate(tokens, size=size, mode="bilinear", align_corners=False)
