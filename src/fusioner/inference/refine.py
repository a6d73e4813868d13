"""Moving the edges of masks to edges of the photograph: a guided filter over logits.

He, Sun, Tang, "Guided Image Filtering" (TPAMI 2013), with a colour guide: in every small window the logits are taken
for a linear function of the colours there. What depends on the photograph alone is computed once for all labels.
Letters: K labels, S side of the square guide, h w the network's own resolution.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fusioner.inference.decide import upsample

# Chosen on training images, see docs/accuracy.md.
SIDE = 112  # cells of the guide, whatever the photograph's size and proportions
RADIUS = 4  # cells to each side of a window's middle
EPSILON = 1e-4  # variance of colour (in [0, 1]) below which a window counts as flat


class EdgeFilter:
    """One photograph's edges, applied to the logits of any labels.

    Args:
        guide: the squashed photograph, RGB in [0, 1].
    """

    def __init__(self, guide: Float[Tensor, "3 s s"], radius: int = RADIUS, epsilon: float = EPSILON) -> None:
        self.guide, self.radius = guide, radius
        self.mean = self._box(guide)
        products = torch.einsum("chw,dhw->cdhw", guide, guide)
        covariance = self._box(products) - torch.einsum("chw,dhw->cdhw", self.mean, self.mean)
        flat = epsilon * torch.eye(3, device=guide.device)[:, :, None, None]
        self.inverse = torch.linalg.inv((covariance + flat).permute(2, 3, 0, 1)).permute(2, 3, 0, 1)

    def __call__(self, logits: Float[Tensor, "k h w"]) -> Float[Tensor, "k s s"]:
        """Logits at the guide's size, as smooth as the photograph is and no smoother."""
        p = upsample(logits, (self.guide.shape[1], self.guide.shape[2]))
        mean = self._box(p)
        with_colour = self._box(p[:, None] * self.guide) - mean[:, None] * self.mean  # (K, 3, S, S)
        slope = torch.einsum("cdhw,kdhw->kchw", self.inverse, with_colour)
        level = mean - (slope * self.mean).sum(dim=1)
        return (self._box(slope) * self.guide).sum(dim=1) + self._box(level)

    def _box(self, x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
        """Mean over each window, at the rim over what of it lies inside."""
        side, flat = 2 * self.radius + 1, x.reshape(1, -1, *x.shape[-2:])
        rows = F.avg_pool2d(flat, (side, 1), 1, (self.radius, 0), count_include_pad=False)
        return F.avg_pool2d(rows, (1, side), 1, (0, self.radius), count_include_pad=False).view_as(x)
