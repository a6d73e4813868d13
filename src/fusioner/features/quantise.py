"""Tokens in eight bits: one scale a token, so that a component is off by at most half a step of its own token."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor


class Quantised(NamedTuple):
    """`values * scales` is the token; |values| <= 127."""

    values: Int8[Tensor, "*b d gh gw"]
    scales: Float[Tensor, "*b gh gw"]


@dataclass
class Rounding:
    """How far stored tokens are from the encoder's, as a share of a token's length (1 for unit tokens).

    Attributes:
        tokens: how many were stored; total: the sum of their errors; worst: the largest.
    """

    tokens: int = 0
    total: float = 0.0
    worst: float = 0.0

    @property
    def mean(self) -> float:
        """Mean error of a token."""
        return self.total / max(self.tokens, 1)

    def add(self, errors: Float[Tensor, "*n"]) -> None:
        """Take in the errors of more tokens."""
        self.tokens += errors.numel()
        self.total += float(errors.double().sum())
        self.worst = max(self.worst, float(errors.max()))

    def merge(self, other: "Rounding") -> None:
        """Take in what another one has seen."""
        self.tokens += other.tokens
        self.total += other.total
        self.worst = max(self.worst, other.worst)


def quantise(tokens: Float[Tensor, "*b d gh gw"]) -> Quantised:
    """Round every token to 255 steps of a 127th of its largest component; a zero token stays zero."""
    tokens = tokens.float()
    largest = tokens.abs().amax(dim=-3)  # (*b, gh, gw)
    # Below the smallest normal number a step would lose its own precision; nothing of unit length comes near it.
    scales = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Quantised((tokens / scales.unsqueeze(-3)).round_().clamp_(-127, 127).to(torch.int8), scales)


def restore(stored: Quantised, out: Float[Tensor, "*b d gh gw"] | None = None) -> Float[Tensor, "*b d gh gw"]:
    """The tokens again, float32 (or written straight into `out`, of any floating type)."""
    scales = stored.scales.unsqueeze(-3)
    if out is None or out.dtype == torch.float32:
        return torch.mul(stored.values, scales, out=out)
    return out.copy_(stored.values * scales)


def token_errors(tokens: Float[Tensor, "*b d gh gw"], again: Float[Tensor, "*b d gh gw"]) -> Float[Tensor, "*b gh gw"]:
    """Distance of stored tokens from the originals, relative to their length."""
    lengths = tokens.float().norm(dim=-3).clamp(min=torch.finfo(torch.float32).tiny)
    return (tokens.float() - again.float()).norm(dim=-3) / lengths
