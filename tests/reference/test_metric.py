"""FoldIoU against the sums of the official evaluator."""

from pathlib import Path

import torch
from safetensors import safe_open

from fusioner.evaluation.metrics import FoldIoU


def test_fold_iou_reproduces_the_official_sums(reference: Path):
    with safe_open(reference / "metric.safetensors", "pt") as file:
        cases = int(file.metadata()["cases"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    classes = [int(tensors[f"class{i}"]) for i in range(cases)]
    first = (min(classes) - 1) // 5 * 5 + 1  # the five classes of the fold the prompted ones belong to
    metric = FoldIoU(class_ids=range(first, first + 5), num_classes=tensors["output.intersection"].shape[1])
    for i in range(cases):
        metric.update(tensors[f"pred{i}"], tensors[f"gt{i}"], classes[i], tensors[f"ignore{i}"])
    torch.testing.assert_close(metric.intersection.float(), tensors["output.intersection"], rtol=1e-5, atol=0)
    torch.testing.assert_close(metric.union.float(), tensors["output.union"], rtol=1e-5, atol=0)
    result = metric.compute()
    torch.testing.assert_close(result["miou"].float(), tensors["output.miou"], rtol=1e-5, atol=0)
    torch.testing.assert_close(result["fb_iou"].float(), tensors["output.fb_iou"], rtol=1e-5, atol=0)
