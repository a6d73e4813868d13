"""Training losses, and the mIoU of binary decisions, accumulated on the device during training.

Letters: B images, P prompts, C classes in the joint numbering, h w loss size. Each loss is a sum over pixels divided by
`count`; with the count of a whole batch, the losses of its parts (devices, micro-batches) add up to the batch's.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from fusioner.training.data_loader import Batch

COUNT_DECAY = 0.98
"""Decay per step of the running counts (a window of about 50 steps)."""

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 15))
"""Candidates for a model's own probability threshold, chosen on held-out training images: 0.1 ... 0.7."""


def masked_bce(
    logits: Float[Tensor, "*b h w"],
    target: Float[Tensor, "*b h w"],
    ignore: Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"],
    count: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Return the binary cross-entropy of sigmoid(logits), averaged over pixels not ignored (paper section 3.4).

    Args:
        logits: finite values; target: 0 or 1; ignore: non-zero at excluded pixels.
        count: divisor of the sum; None: the number of pixels not ignored (a loss of 0 if there are none).
    """
    counts = (ignore == 0).to(logits.dtype)
    total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * counts).sum()
    return total / (counts.sum().clamp_min(1) if count is None else count)


def multiclass_ce(
    logits: Float[Tensor, "b p h w"],
    labels: Integer[Tensor, "b h w"],
    padded: Bool[Tensor, "b p"],
    count: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy over an image's prompts and background, whose logit is 0 (a probability of 0.5).

    Beyond the paper: sigmoids treat prompts independently, this makes those of one image compete for its pixels.

    Args:
        labels: 0 background (and every class not prompted), i the i-th prompt, -1 ignored.
        padded: prompts to leave out.
        count: divisor of the sum; None: the number of pixels not ignored.
    """
    prompts = logits.masked_fill(padded[..., None, None], -torch.inf)
    all_logits = torch.cat([torch.zeros_like(logits[:, :1]), prompts], dim=1)  # (b, 1 + p, h, w)
    total = F.cross_entropy(all_logits, labels.long(), ignore_index=-1, reduction="sum")
    return total / ((labels >= 0).sum().clamp_min(1) if count is None else count)


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
