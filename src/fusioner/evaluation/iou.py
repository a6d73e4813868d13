"""Pixel counts of intersection over union.

Counts are summed over images before dividing, as in the PASCAL-5i and COCO-20i papers (HSNet's evaluator), never
averaged per image.
"""

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

Masks = Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"]


def binary_counts(prediction: Masks, target: Masks, ignore: Masks | None = None) -> Int64[Tensor, "2 2"]:
    """Count pixels of a binary decision: rows background and foreground, columns intersection and union.

    Args:
        prediction, target: non-zero = foreground; ignore: non-zero = not counted.
    """
    predicted, wanted = prediction.bool(), target.bool()
    valid = torch.ones_like(wanted) if ignore is None else ~ignore.bool()
    both, either = (predicted & wanted & valid).sum(), ((predicted | wanted) & valid).sum()
    total = valid.sum()
    return torch.stack([torch.stack([total - either, total - both]), torch.stack([both, either])])


def confusion_matrix(
    prediction: Integer[Tensor, "*b h w"], target: Integer[Tensor, "*b h w"], classes: int, ignore: int = 255
) -> Int64[Tensor, "c c"]:
    """Count pixels by (true id, predicted id), both in 0..classes-1, without pixels whose target is `ignore`."""
    truth, predicted = target.reshape(-1).long(), prediction.reshape(-1).long()
    valid = truth != ignore
    cells = torch.bincount(truth[valid] * classes + predicted[valid], minlength=classes * classes)
    return cells.reshape(classes, classes)


def class_iou(confusion: Int64[Tensor, "c c"]) -> Float[Tensor, " c"]:
    """Return the IoU of each class in [0, 1], NaN for classes that are not in the ground truth."""
    counts = confusion.double()
    inside, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    return torch.where(truth > 0, inside / (truth + predicted - inside).clamp(min=1), torch.nan)
