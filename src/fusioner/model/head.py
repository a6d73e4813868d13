"""The cosine head (paper section 3.3).

Letters: B images, K labels, C channels, H W the features' resolution, H2 W2 the logits'.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fusioner.model.cpu_kernels import NeighbourProducts

MIN_SQUARE = 1e-6
"""Least squared length of an interpolated feature, relative to its neighbours' (only opposite ones come near it)."""


def cosine_logits(
    features: Float[Tensor, "b c h w"],
    classes: Float[Tensor, "b k c"],
    temperature: float,
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "b k h2 w2"]:
    """Return the cosine of every pixel's feature and every class vector over the temperature, in float32.

    Values lie within +-1 / temperature; their sigmoid is the probability of the class at the pixel.

    Args:
        size: (H2, W2). Equals the logits of features resized to it bilinearly, without resizing them: a cosine needs
            the feature's product with the classes, which is linear in the feature, and its length, whose square is
            quadratic in the four neighbours and follows from their products with each other.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, classes = features.float(), F.normalize(classes.float(), dim=-1)
        if size is not None and (torch.compiler.is_exporting() or size[0] * size[1] <= features[0, 0].numel()):
            features, size = F.interpolate(features, size=size, mode="bilinear", align_corners=False), None
        if size is None:
            return torch.einsum("bchw,bkc->bkhw", F.normalize(features, dim=1), classes) / temperature
        dots = _resized(torch.einsum("bchw,bkc->bkhw", features, classes), size)
        return dots * (resized_square(features, size)[:, None].rsqrt() / temperature)


def resized_square(features: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b h2 w2"]:
    """Return the squared length of `features` as if resized bilinearly to `size`; never zero."""
    itself, right, below, across = neighbour_products(features).unbind()  # (B, H, W) each
    table = torch.cat([torch.cat([itself, right], dim=2), torch.cat([below, across], dim=2)], dim=1)  # (B, 2H, 2W)
    rows, columns = (_weights(*pair, features) for pair in zip(features.shape[2:], size, strict=True))
    square = rows @ table @ columns.T
    floor = MIN_SQUARE * _resized(itself.detach()[:, None], size)[:, 0]
    return torch.maximum(square, floor).clamp_min(1e-24)


def neighbour_products(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "4 b h w"]:
    """Return the products of each feature with itself, its right and its lower neighbour, and the mean product of the
    two diagonals of the square below and right of it; 0 at the border."""
    x = features.movedim(1, -1)
    if not torch.compiler.is_compiling():
        return NeighbourProducts.apply(x)  # type: ignore[no-any-return]
    right = F.pad((x[:, :, :-1] * x[:, :, 1:]).sum(-1), (0, 1))
    below = F.pad((x[:, :-1] * x[:, 1:]).sum(-1), (0, 0, 0, 1))
    diagonals = (x[:, :-1, :-1] * x[:, 1:, 1:] + x[:, :-1, 1:] * x[:, 1:, :-1]).sum(-1)
    return torch.stack([x.square().sum(-1), right, below, F.pad(diagonals / 2, (0, 1, 0, 1))])


def _weights(old: int, new: int, like: Tensor) -> Float[Tensor, "new old2"]:
    """Return the weights of the `old` squares and the `old` products of neighbours in each of `new` squares."""
    at = ((torch.arange(new, device=like.device) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    first = at.floor().clamp(0, max(0, old - 2))
    share = (at - first)[:, None]
    one, other = (F.one_hot((first + step).long().clamp(max=old - 1), old) for step in (0, 1))
    return torch.cat([one * (1 - share) ** 2 + other * share**2, one * 2 * share * (1 - share)], dim=1).to(like.dtype)


def _resized(maps: Float[Tensor, "b k h w"], size: tuple[int, int]) -> Float[Tensor, "b k h2 w2"]:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
