"""mIoU of binary decisions while training, without waiting for the device.

Letters: B images, P prompts, C classes of all parts numbered through.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.training.data_loader import Batch

MEMORY = 0.98
"""What a running count keeps of itself at each step: about the last fifty steps matter."""


THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 15))
"""Probabilities among which a finished model's own threshold is chosen on held-out training images: 0.1 ... 0.7."""


def iou_counts(
    logits: Float[Tensor, "b p h w"], batch: Batch, classes: int, threshold: float = 0.5
) -> Float[Tensor, "c 3"]:
    """Per class: pixels right, claimed, true, over all prompts of the batch, absent ones included."""
    claimed, true, valid = logits > math.log(threshold / (1 - threshold)), batch.target() > 0, ~batch.ignore()
    sums = [(mask & valid).sum((2, 3)) for mask in (claimed & true, claimed, true)]
    counts = torch.zeros(classes, 3, device=logits.device)
    return counts.index_add_(0, batch.classes.flatten(), torch.stack(sums, dim=-1).flatten(0, 1).float())


def miou(counts: Float[Tensor, "c 3"]) -> float:
    """Mean IoU in per cent over the classes that were there to be found; 0 where none was."""
    right, claimed, true = counts.double().unbind(1)
    iou = right / (claimed + true - right).clamp_min(1e-9)
    there = true > 0
    return float(100 * iou[there].mean()) if bool(there.any()) else 0.0
