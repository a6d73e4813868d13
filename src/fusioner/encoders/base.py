"""What the rest of Fusioner knows about an encoder: two Protocols and the class that keeps one frozen.

Dimension letters used in this package: B images, H W pixels, Gh Gw token grid, D channels, N strings, K labels.
"""

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class ImageEncoder(Protocol):
    """Frozen image encoder: RGB in, dense unit-length tokens out.

    Attributes:
        name: the zoo name it was built from; building that name again gives the same encoder.
        dim: token width D.
        stride: pixels per token, in both directions.
        mean, std: per-channel normalisation (on RGB in [0, 1]); applied inside, and replaceable.
    """

    name: str
    dim: int
    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """RGB in [0, 1] of any size -> tokens of unit length along d, on a grid of h // stride by w // stride."""
        ...

    def fingerprint(self) -> str:
        """Sha256 (hex) of the weights and the preprocessing: equal exactly when the tokens are."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """Frozen text encoder: strings in, one unit-length vector each out.

    Attributes:
        name: the zoo name it was built from.
        dim: vector width D.
    """

    name: str
    dim: int

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Any number of strings -> (n, d), unit length, in the order given."""
        ...

    def fingerprint(self) -> str:
        """Sha256 (hex) of the weights and the tokenizer."""
        ...


class Frozen(nn.Module):
    """A module that never trains: no gradients, always in eval mode, also after `.train()` on its parent.

    Subclasses call `freeze()` at the end of their `__init__`.
    """

    def freeze(self) -> Self:
        """Turn gradients off for good and enter eval mode."""
        self.requires_grad_(False)
        return self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the caller asks: frozen BatchNorm and dropout must not wake up."""
        return super().train(False)
