"""The last attention layer of CLIP, replaced without training so that its patch tokens keep their place.

Letters: B images, T tokens (class token and patches), C width, Gh Gw patch grid.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Attention = Literal["clip", "maskclip", "sclip", "naclip", "clearclip", "values"]
GAUSSIAN_STD = 5.0  # of NACLIP's neighbourhood, in patches


class LastLayer(nn.Module):
    """A transformer layer of CLIP with another attention.

    "maskclip" (arXiv 2112.01071): every token attends to itself alone.
    "sclip" (2312.01597): softmax(q q) + softmax(k k) in place of softmax(q k).
    "naclip" (2404.08181): softmax(k k + a Gaussian of the distance between patches); no residual, no MLP.
    "clearclip" (2407.12442): softmax(q q); no residual, no MLP.
    "values": as "maskclip" without residual and MLP, for attention weights from elsewhere (`encoders.proxyclip`).
    """

    def __init__(self, layer: Any, attention: Attention) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention

    def forward(self, states: Float[Tensor, "b t c"], grid: tuple[int, int]) -> Float[Tensor, "b t c"]:
        """Compute the layer's output; `grid` is that of the patches, which end the tokens."""
        attention = self.layer.self_attn
        attended = attention.out_proj(self._attend(attention, self.layer.layer_norm1(states), grid))
        if self.attention in ("naclip", "clearclip", "values"):
            return attended
        states = states + attended
        return states + self.layer.mlp(self.layer.layer_norm2(states))

    def _attend(self, attention: Any, normed: Float[Tensor, "b t c"], grid: tuple[int, int]) -> Float[Tensor, "b t c"]:
        values = attention.v_proj(normed)
        if self.attention in ("maskclip", "values"):
            return values

        def similarity(projection: nn.Module) -> Float[Tensor, "b heads t t"]:
            heads = _split(projection(normed), attention.num_heads)
            return heads @ heads.transpose(-1, -2) * attention.scale

        if self.attention == "naclip":
            weights = (similarity(attention.k_proj) + neighbourhood(grid, normed)).softmax(dim=-1)
        else:
            weights = similarity(attention.q_proj).softmax(dim=-1)
        if self.attention == "sclip":
            weights = weights + similarity(attention.k_proj).softmax(dim=-1)
        return (weights @ _split(values, attention.num_heads)).transpose(1, 2).flatten(2)


def _split(states: Float[Tensor, "b t c"], heads: int) -> Float[Tensor, "b heads t c2"]:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def neighbourhood(grid: tuple[int, int], tokens: Float[Tensor, "b t c"]) -> Float[Tensor, "t t"]:
    """Return exp(-distance^2 / (2 std^2)) of every pair of patches; 0 for the class token before them."""
    y, x = (torch.arange(side, device=tokens.device, dtype=tokens.dtype) for side in grid)
    rows, columns = ((place[:, None] - place).square() for place in (y, x))
    squared = (rows[:, None, :, None] + columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (gh gw, gh gw)
    return F.pad((-squared / (2 * GAUSSIAN_STD**2)).exp(), (1, 0, 1, 0))
