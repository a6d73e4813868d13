"""Convolutions as a CPU trains them fastest: same sums, another order.

torch 2.13 takes the weight gradient of a wide channels-last convolution at a fifth of the speed that matrix products
reach (docs/speed.md), while its forward pass and its input gradient are near the peak. So only that gradient is ours.
Letters: B images, C channels in, D out, H W grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WIDE = 128
"""Channels from which matrix products are faster than the library."""


def convolve(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
    """`conv(x)` for a 1x1 convolution, or a 3x3 one with a padding of 1, to the rounding of floats."""
    plain = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if plain or not torch.is_grad_enabled() or min(conv.in_channels, conv.out_channels) < WIDE:
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        back = None
        if ctx.needs_input_grad[0]:
            geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
            back = torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, [True, False, False])[0]
        return back, weight_gradient(x, grad), grad.sum((0, 2, 3))


def weight_gradient(x: Float[Tensor, "b c h w"], grad: Float[Tensor, "b d h w"]) -> Float[Tensor, "d c 3 3"]:
    """Of a 3x3 convolution: nine matrix products.

    With a frame of zeros around both, all images are one list of positions, and the neighbour in a direction is the
    position at a fixed distance in it: no product needs a copy. What reaches over an edge meets the zeros.
    """
    line = x.shape[3] + 2
    rows, grads = _framed(x), _framed(grad)  # (positions, C), (positions, D)
    reach, count = line + 1, len(rows)
    inner = grads[reach : count - reach].T
    out = x.new_empty(3, 3, grads.shape[1], rows.shape[1])
    for dy in range(3):
        for dx in range(3):
            shift = (dy - 1) * line + dx - 1
            torch.mm(inner, rows[reach + shift : count - reach + shift], out=out[dy, dx])
    return out.permute(2, 3, 0, 1)


def _framed(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "p c"]:
    return F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)
