"""The cosine head (paper section 3.3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cosine_logits(
    features: Float[Tensor, "b c h w"], classes: Float[Tensor, "b k c"], temperature: float
) -> Float[Tensor, "b k h w"]:
    """Cosine between every pixel's feature and every class vector, divided by the temperature.

    Values lie within +-1 / temperature; their sigmoid is the probability that the pixel shows the class.
    """
    pixels = F.normalize(features, dim=1)
    return torch.einsum("bchw,bkc->bkhw", pixels, F.normalize(classes, dim=-1)) / temperature
