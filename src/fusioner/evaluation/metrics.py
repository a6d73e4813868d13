"""Intersection over union, as torchmetrics Metrics with summed states: per process counts add up, also under DDP.

Both are micro measures: pixels of all images are summed per class before dividing, as the PASCAL-5i and COCO-20i papers
do (HSNet's evaluator), never averaged per image. Values are fractions in [0, 1]; reports show per cent.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor
from torchmetrics import Metric

Masks = Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"]


def binary_counts(prediction: Masks, target: Masks, ignore: Masks | None = None) -> Int64[Tensor, "2 2"]:
    """Pixel counts of one binary decision: rows background and foreground, columns intersection and union.

    Args:
        prediction, target: non-zero = foreground; ignore: non-zero = the pixel counts nowhere.
    """
    predicted, wanted = prediction.bool(), target.bool()
    valid = torch.ones_like(wanted) if ignore is None else ~ignore.bool()
    both, either = (predicted & wanted & valid).sum(), ((predicted | wanted) & valid).sum()
    total = valid.sum()
    return torch.stack([torch.stack([total - either, total - both]), torch.stack([both, either])])


def confusion(
    prediction: Integer[Tensor, "*b h w"], target: Integer[Tensor, "*b h w"], classes: int, ignore: int = 255
) -> Int64[Tensor, "c c"]:
    """Pixel counts by (true id, predicted id), both in 0..classes-1; pixels whose truth is `ignore` count nowhere."""
    truth, guess = target.reshape(-1).long(), prediction.reshape(-1).long()
    valid = truth != ignore
    cells = torch.bincount(truth[valid] * classes + guess[valid], minlength=classes * classes)
    return cells.reshape(classes, classes)


class FoldIoU(Metric):
    """mIoU and FB-IoU of binary decisions, one prompted class at a time (the "fold" protocols).

    `compute()` gives `miou` (mean over `class_ids` of foreground IoU; a class never seen counts 0, as in HSNet's
    evaluator), `fb_iou` (mean of background and foreground IoU, each summed over the classes) and `per_class`.

    Args:
        class_ids: the classes to average over.
        num_classes: width of the state; larger than every class id.

    Examples:
        >>> import torch
        >>> metric = FoldIoU(class_ids=[1, 2], num_classes=3)
        >>> metric.update(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0]]), class_id=1)
        >>> metric.update(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 1, 1]]), class_id=2)
        >>> round(float(metric.compute()["miou"]), 2)
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    intersection: Int64[Tensor, "2 c"]
    union: Int64[Tensor, "2 c"]

    def __init__(self, class_ids: Sequence[int], num_classes: int):
        super().__init__()
        if not class_ids or not 0 <= min(class_ids) <= max(class_ids) < num_classes:
            raise ValueError(f"class_ids must be within 0..{num_classes - 1}, not {list(class_ids)}")
        self.class_ids = sorted(class_ids)
        for name in ("intersection", "union"):
            self.add_state(name, torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Masks, target: Masks, class_id: int, ignore: Masks | None = None) -> None:
        """Add one image (or several of the same prompted class)."""
        counts = binary_counts(prediction, target, ignore)
        self.intersection[:, class_id] += counts[:, 0]
        self.union[:, class_id] += counts[:, 1]

    def compute(self) -> dict[str, Float[Tensor, "..."]]:
        """`miou`, `fb_iou` (scalars) and `per_class` (one value per class id, ascending)."""
        intersection, union = self.intersection[:, self.class_ids].double(), self.union[:, self.class_ids].double()
        per_class = intersection[1] / union[1].clamp(min=1)
        fb = intersection.sum(dim=1) / union.sum(dim=1).clamp(min=1)
        return {"miou": per_class.mean(), "fb_iou": fb.mean(), "per_class": per_class}


class ConfusionIoU(Metric):
    """Per-class IoU and mIoU of an argmax among several classes, background (id 0) among them.

    `compute()` gives `per_class` (NaN where the truth holds no such pixel), `miou` (mean over the named classes the
    truth holds, background left out: it is large, easy, and would flatter) and `confusion` (true id, predicted id).

    Args:
        num_classes: ids 0..num_classes-1, background included.
        ignore: target value of pixels that count nowhere.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Int64[Tensor, "c c"]

    def __init__(self, num_classes: int, ignore: int = 255):
        super().__init__()
        self.num_classes, self.ignore = num_classes, ignore
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Integer[Tensor, "*b h w"], target: Integer[Tensor, "*b h w"]) -> None:
        """Add label maps."""
        self.counts += confusion(prediction, target, self.num_classes, self.ignore)

    def compute(self) -> dict[str, Tensor]:
        """See the class."""
        counts = self.counts.double()
        inside, truth, guess = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        per_class = torch.where(truth > 0, inside / (truth + guess - inside).clamp(min=1), torch.nan)
        return {"miou": per_class[1:].nanmean(), "per_class": per_class, "confusion": self.counts}
