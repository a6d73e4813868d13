"""ProxyCLIP (arXiv 2408.04883): CLIP's last values, averaged by the affinity of another encoder's tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fusioner.encoders.base import ConcatEncoder, ImageEncoder, state_digest
from fusioner.encoders.image import AlignedPatches

BETA, GAMMA = 1.2, 3.0  # shift, as a multiple of the mean cosine, and scale of the affinity, as published


class ProxyEncoder(ConcatEncoder):
    """Tokens of a text-aligned encoder on the grid of a second one, whose affinity replaces the last attention.

    weights = softmax((cosine - 1.2 mean cosine) * 3) over the patches where this is positive. With a `ClipVision` of
    attention "values" this is ProxyCLIP: the averaged values then pass the head, likewise with a `SiglipVision`. Of
    other encoders, the final tokens are averaged.
    """

    text_aligned = True

    def __init__(self, aligned: ImageEncoder, guide: ImageEncoder, name: str) -> None:
        super().__init__([aligned, guide])
        self.name, self.dim, self.stride = name, aligned.dim, guide.stride

    @property
    def parts(self) -> tuple[ImageEncoder, ...]:
        return (self,)  # type: ignore[return-value]

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Encode RGB in [0, 1] into unit-length tokens on the second encoder's grid."""
        aligned, guide = self._parts
        tokens = guide(images)  # (b, c, gh, gw)
        joint = isinstance(aligned, AlignedPatches)
        values = aligned.unscaled(images) if joint else aligned(images)
        values = F.interpolate(values, size=tokens.shape[-2:], mode="bilinear", align_corners=False)
        averaged = proxy_attention(tokens) @ values.flatten(2).transpose(1, 2)  # (b, gh * gw, d)
        averaged = aligned.head(averaged) if joint else averaged
        return F.normalize(averaged.transpose(1, 2).unflatten(2, tokens.shape[-2:]).float(), dim=1)

    @torch.no_grad()
    def undecided(self, images: Float[Tensor, "b 3 h w"], margin: float = 3e-5) -> Bool[Tensor, "b gh gw"]:
        """Return the patches for which some affinity is within `margin` of 0, where it is cut.

        Rounding decides such a cut, so that another runtime gives these patches other tokens.
        """
        tokens = self._parts[1](images)
        return (proxy_affinity(tokens).abs() < margin).any(dim=-1).unflatten(1, tokens.shape[-2:])

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the encoders' fingerprints and of the method."""
        return state_digest(torch.nn.Module(), ["proxyclip", super().fingerprint()])


def proxy_affinity(tokens: Float[Tensor, "b c gh gw"]) -> Float[Tensor, "b n n"]:
    """Return the shifted and scaled cosines of all pairs of unit-length tokens."""
    flat = tokens.flatten(2)
    mean = flat.mean(dim=2).square().sum(dim=1)  # of all cosines; runtimes that sum n * n of them lose digits
    return (flat.transpose(1, 2) @ flat - BETA * mean[:, None, None]) * GAMMA


def proxy_attention(tokens: Float[Tensor, "b c gh gw"]) -> Float[Tensor, "b n n"]:
    """Return the weights of all patches for each patch, from unit-length tokens; rows sum to 1."""
    affinity = proxy_affinity(tokens)
    itself = torch.eye(affinity.shape[-1], dtype=torch.bool, device=affinity.device)  # in one colour, alone
    return affinity.masked_fill((affinity < 0) & ~itself, -torch.inf).softmax(dim=-1)
