"""Hand-written gradients for training on CPUs: the same sums in a faster order.

torch 2.13 takes the weight gradient of a wide channels-last convolution at a fifth of the speed that matrix products
reach (docs/speed.md), while its forward pass and its input gradient are near the peak. Only that gradient is replaced.
Letters: B images, C channels in, D out, H W grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MIN_CHANNELS = 128
"""From here matrix products are faster than the library."""


def convolve(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """Return `conv(x)` for a 1x1 convolution or a 3x3 one with padding 1, up to rounding."""
    plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if plain or not torch.is_grad_enabled() or min(conv.in_channels, conv.out_channels) < MIN_CHANNELS:
        return conv(x)
    if conv.kernel_size == (1, 1):
        return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
    return _Conv3x3.apply(x, conv.weight, conv.bias)  # type: ignore[no-any-return]


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        back = None
        if ctx.needs_input_grad[0]:
            geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
            back = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [True, False, False])[0]
        return back, weight_gradient(x, grad), grad.sum((0, 2, 3))


def weight_gradient(x: Float[Tensor, "b c h w"], grad: Float[Tensor, "b d h w"]) -> Float[Tensor, "d c 3 3"]:
    """Return the weight gradient of a 3x3 convolution as nine matrix products.

    With a border of zeros around both inputs all images form one list of positions, in which a neighbour lies at a
    fixed distance, so that no product needs a copy and neighbours beyond the border are zero.
    """
    line = x.shape[3] + 2
    rows, grads = _pad(x), _pad(grad)  # (positions, C), (positions, D)
    reach, count = line + 1, len(rows)
    inner = grads[reach : count - reach].T
    out = x.new_empty(3, 3, grads.shape[1], rows.shape[1])
    for dy in range(3):
        for dx in range(3):
            shift = (dy - 1) * line + dx - 1
            torch.mm(inner, rows[reach + shift : count - reach + shift], out=out[dy, dx])
    return out.permute(2, 3, 0, 1)


def _pad(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "p c"]:
    return F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)


BLOCK_SIZE = 2**17  # float32 values that a CPU works on at a time: half a megabyte, which fits into its cache


class NeighbourProducts(torch.autograd.Function):
    """`head.neighbour_products` of (B, H, W, C), block by block, so that products stay in the cache in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = x.new_zeros(4, *x.shape[:3])
        for images, first, end in _blocks(x):
            here, under = x[images, first:end], x[images, first + 1 : end + 1]
            k = under.shape[1]
            block = out[:, images, first:end]
            block[0] = (here * here).sum(-1)
            block[1, :, :, :-1] = (here[:, :, :-1] * here[:, :, 1:]).sum(-1)
            block[2, :, :k] = (here[:, :k] * under).sum(-1)
            diagonals = here[:, :k, :-1] * under[:, :, 1:]
            diagonals.addcmul_(here[:, :k, 1:], under[:, :, :-1])
            block[3, :, :k, :-1] = diagonals.sum(-1) / 2
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        out = torch.empty_like(x)
        for images, first, end in _blocks(x):
            here, under = x[images, first:end], x[images, first + 1 : end + 1]
            mine = grad[:, images, first:end]
            to = out[images, first:end]
            torch.mul(here, 2 * mine[0], out=to)
            right = mine[1, :, :, :-1]
            to[:, :, :-1].addcmul_(right, here[:, :, 1:])
            to[:, :, 1:].addcmul_(right, here[:, :, :-1])
            _add_row(to[:, : under.shape[1]], mine[2:, :, : under.shape[1]], under)
            start = max(first, 1)  # of the row above with this one
            _add_row(out[images, start:end], grad[2:, images, start - 1 : end - 1], x[images, start - 1 : end - 1])
        return out


def _add_row(to: Tensor, grad: Tensor, other: Tensor) -> None:
    """Add the gradient of (below, diagonals) between the rows `to` and `other`; `grad` is the upper row's."""
    to.addcmul_(grad[0], other)
    half = grad[1, :, :, :-1] / 2
    to[:, :, :-1].addcmul_(half, other[:, :, 1:])
    to[:, :, 1:].addcmul_(half, other[:, :, :-1])


def _blocks(x: Float[Tensor, "b h w c"]) -> list[tuple[slice, int, int]]:
    """Return the blocks (images, first row, end)."""
    b, h, w, c = x.shape
    if x.device.type != "cpu":
        return [(slice(0, b), 0, h)]
    rows = min(h, max(1, BLOCK_SIZE // (w * c)))
    count = max(1, BLOCK_SIZE // (h * w * c)) if rows == h else 1
    return [
        (slice(image, image + count), first, min(first + rows, h))
        for image in range(0, b, count)
        for first in range(0, h, rows)
    ]
