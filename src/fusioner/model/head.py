"""The cosine head (paper section 3.3).

Letters: B images, K labels, C channels, H W the features' resolution, H2 W2 the answer's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**17
"""Numbers that a CPU works on at a time: half a megabyte, which stays in its cache."""
LEAST = 1e-6
"""Share of its neighbours' squared length that a feature between them keeps at least (all but opposite neighbours)."""


def cosine_logits(
    features: Float[Tensor, "b c h w"],
    classes: Float[Tensor, "b k c"],
    temperature: float,
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "b k h2 w2"]:
    """Cosine between every pixel's feature and every class vector, divided by the temperature; in float32.

    Values lie within +-1 / temperature; their sigmoid is the probability that the pixel shows the class.

    Args:
        size: (H2, W2). The answer is that for features resized to it bilinearly, but they are not: a cosine needs a
            feature's product with the classes, which is linear in the feature, and its length, whose square is
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
    """Squared length at every pixel of what `features` would be, resized bilinearly to `size`; never zero."""
    itself, right, below, across = neighbour_products(features).unbind()  # (B, H, W) each
    table = torch.cat([torch.cat([itself, right], dim=2), torch.cat([below, across], dim=2)], dim=1)  # (B, 2H, 2W)
    rows, columns = (_weights(*pair, features) for pair in zip(features.shape[2:], size, strict=True))
    square = rows @ table @ columns.T
    floor = LEAST * _resized(itself.detach()[:, None], size)[:, 0]
    return torch.maximum(square, floor).clamp_min(1e-24)


def neighbour_products(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "4 b h w"]:
    """Products of each pixel's feature with itself, its right and its lower neighbour; and of the two diagonals of the
    square it heads, averaged. 0 where there is no neighbour."""
    x = features.movedim(1, -1)
    if not torch.compiler.is_compiling():
        return _NeighbourProducts.apply(x)  # type: ignore[no-any-return]
    right = F.pad((x[:, :, :-1] * x[:, :, 1:]).sum(-1), (0, 1))
    below = F.pad((x[:, :-1] * x[:, 1:]).sum(-1), (0, 0, 0, 1))
    diagonals = (x[:, :-1, :-1] * x[:, 1:, 1:] + x[:, :-1, 1:] * x[:, 1:, :-1]).sum(-1)
    return torch.stack([x.square().sum(-1), right, below, F.pad(diagonals / 2, (0, 1, 0, 1))])


class _NeighbourProducts(torch.autograd.Function):
    """A block at a time, so that no product of features is ever in memory, and both passes read them from the cache."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = x.new_zeros(4, *x.shape[:3])
        for some, first, end in _blocks(x):
            here, under = x[some, first:end], x[some, first + 1 : end + 1]
            k = under.shape[1]
            block = out[:, some, first:end]
            block[0] = (here * here).sum(-1)
            block[1, :, :, :-1] = (here[:, :, :-1] * here[:, :, 1:]).sum(-1)
            block[2, :, :k] = (here[:, :k] * under).sum(-1)
            diagonals = here[:, :k, :-1] * under[:, :, 1:]
            diagonals.addcmul_(here[:, :k, 1:], under[:, :, :-1])
            block[3, :, :k, :-1] = diagonals.sum(-1) / 2
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        out = torch.empty_like(x)
        for some, first, end in _blocks(x):
            here, under = x[some, first:end], x[some, first + 1 : end + 1]
            mine = grad[:, some, first:end]
            to = out[some, first:end]
            torch.mul(here, 2 * mine[0], out=to)
            right = mine[1, :, :, :-1]
            to[:, :, :-1].addcmul_(right, here[:, :, 1:])
            to[:, :, 1:].addcmul_(right, here[:, :, :-1])
            _add_row(to[:, : under.shape[1]], mine[2:, :, : under.shape[1]], under)
            start = max(first, 1)  # what the row above has with this one
            _add_row(out[some, start:end], grad[2:, some, start - 1 : end - 1], x[some, start - 1 : end - 1])
        return out


def _add_row(to: Tensor, grad: Tensor, other: Tensor) -> None:
    """The gradient of (below, across) between `to` and the row of `other`, of which `grad` is the upper one's."""
    to.addcmul_(grad[0], other)
    half = grad[1, :, :, :-1] / 2
    to[:, :, :-1].addcmul_(half, other[:, :, 1:])
    to[:, :, 1:].addcmul_(half, other[:, :, :-1])


def _blocks(x: Float[Tensor, "b h w c"]) -> list[tuple[slice, int, int]]:
    """(images, first row, end): what is worked on at a time."""
    b, h, w, c = x.shape
    if x.device.type != "cpu":
        return [(slice(0, b), 0, h)]
    rows = min(h, max(1, BLOCK // (w * c)))
    images = max(1, BLOCK // (h * w * c)) if rows == h else 1
    return [
        (slice(image, image + images), first, min(first + rows, h))
        for image in range(0, b, images)
        for first in range(0, h, rows)
    ]


def _weights(old: int, new: int, like: Tensor) -> Float[Tensor, "new old2"]:
    """What each of `new` squares takes of `old` squares and, after them, of `old` products with the next one."""
    at = ((torch.arange(new, device=like.device) + 0.5) * old / new - 0.5).clamp(0, old - 1)
    first = at.floor().clamp(0, max(0, old - 2))
    share = (at - first)[:, None]
    one, other = (F.one_hot((first + step).long().clamp(max=old - 1), old) for step in (0, 1))
    return torch.cat([one * (1 - share) ** 2 + other * share**2, one * 2 * share * (1 - share)], dim=1).to(like.dtype)


def _resized(maps: Float[Tensor, "b k h w"], size: tuple[int, int]) -> Float[Tensor, "b k h2 w2"]:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
