"""The mean IoU of a confusion matrix, which several scripts print."""

import torch
from jaxtyping import Int64
from torch import Tensor


def foreground_miou(confusion: Int64[Tensor, "c c"]) -> float:
    """Return the mean IoU in per cent of the classes after the first, which is background.

    Args:
        confusion: pixels by (true class, predicted class); classes without ground truth are left out.
    """
    counts = confusion.double()
    inside, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    iou = torch.where(truth > 0, inside / (truth + predicted - inside).clamp(min=1), torch.nan)
    return 100 * float(iou[1:].nanmean())
