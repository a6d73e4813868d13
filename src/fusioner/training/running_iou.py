"""mIoU of binary decisions, accumulated on the device during training.

Letters: B images, P prompts, C classes in the joint numbering, T thresholds.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.training.data_loader import Batch

COUNT_DECAY = 0.98
"""Decay per step of the running counts (a window of about 50 steps)."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 15))
"""Candidates for a model's own probability threshold, chosen on held-out training images: 0.1 ... 0.7."""


def iou_counts(
    logits: Float[Tensor, "b p h w"], batch: Batch, classes: int, threshold: float = 0.5
) -> Float[Tensor, "c 3"]:
    """Count intersection, predicted and true pixels per class, over all prompts including absent ones."""
    predicted, true, valid = logits > math.log(threshold / (1 - threshold)), batch.target() > 0, ~batch.ignore()
    sums = [(mask & valid).sum((2, 3)) for mask in (predicted & true, predicted, true)]
    counts = torch.zeros(classes, 3, device=logits.device)
    return counts.index_add_(0, batch.classes.flatten(), torch.stack(sums, dim=-1).flatten(0, 1).float())


def miou(counts: Float[Tensor, "c 3"]) -> float:
    """Return the mean IoU in per cent over the classes with true pixels; 0 if there are none."""
    intersection, predicted, true = counts.double().unbind(1)
    iou = intersection / (predicted + true - intersection).clamp_min(1e-9)
    present = true > 0
    return float(100 * iou[present].mean()) if bool(present.any()) else 0.0
