"""Moving the edges of masks to edges of the photograph: a guided filter over logits.

He, Sun, Tang, "Guided Image Filtering" (TPAMI 2013), with a colour guide: in every small window the logits are taken
for a linear function of the colours there. What depends on the photograph alone is computed once for all labels; NumPy
does it whatever computed the logits, for there is little of it.
Letters: K labels, S side of the square guide, h w the network's own resolution.
"""

import numpy as np
from jaxtyping import Float

from fusioner.backend import Array, to_numpy, ways
from fusioner.postprocess import upsample

# Chosen on training images, see docs/accuracy.md.
SIDE = 112  # cells of the guide, whatever the photograph's size and proportions
RADIUS = 4  # cells to each side of a window's middle
EPSILON = 1e-4  # variance of colour (in [0, 1]) below which a window counts as flat


class EdgeFilter:
    """One photograph's edges, applied to the logits of any labels.

    Args:
        guide: the squashed photograph, RGB in [0, 1].
    """

    def __init__(self, guide: Float[Array, "3 s s"], radius: int = RADIUS, epsilon: float = EPSILON) -> None:
        self.guide = to_numpy(guide).astype(np.float64)
        place = np.arange(self.guide.shape[-1])
        near = np.abs(place[:, None] - place) <= radius
        self.window = near / near.sum(axis=1, keepdims=True)
        self.mean = self._box(self.guide)
        products = self.guide[:, None] * self.guide
        covariance = self._box(products) - self.mean[:, None] * self.mean
        flat = epsilon * np.eye(3)[:, :, None, None]
        self.inverse = np.linalg.inv((covariance + flat).transpose(2, 3, 0, 1)).transpose(2, 3, 0, 1)

    def __call__(self, logits: Float[Array, "k h w"]) -> Float[Array, "k s s"]:
        """Logits at the guide's size, as smooth as the photograph is and no smoother."""
        planes = to_numpy(upsample(logits, (self.guide.shape[1], self.guide.shape[2])))
        moved = np.stack([self._moved(plane) for plane in planes])
        return ways(logits).like(moved.astype(planes.dtype), logits)

    def _moved(self, p: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
        mean = self._box(p)
        with_colour = self._box(p * self.guide) - mean * self.mean  # (3, S, S)
        slope = (self.inverse * with_colour).sum(axis=1)
        level = mean - (slope * self.mean).sum(axis=0)
        return (self._box(slope) * self.guide).sum(axis=0) + self._box(level)

    def _box(self, x: Float[np.ndarray, "*n s s"]) -> Float[np.ndarray, "*n s s"]:
        """Mean over each window, at the rim over what of it lies inside, as matrix products."""
        return self.window @ x @ self.window.T
