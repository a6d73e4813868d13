"""Compare pixel counts and measures with the sums of the official evaluator."""

from pathlib import Path

import torch
from safetensors import safe_open

from fusioner.evaluation.evaluator import binary_counts


def test_fold_iou_reproduces_the_official_sums(reference: Path):
    with safe_open(reference / "metric.safetensors", "pt") as file:
        cases = int(file.metadata()["cases"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    classes = [int(tensors[f"class{i}"]) for i in range(cases)]
    first = (min(classes) - 1) // 5 * 5 + 1  # the five classes of the fold of the prompted ones
    counts = torch.zeros(tensors["output.intersection"].shape[1], 2, 2, dtype=torch.int64)
    for i in range(cases):
        counts[classes[i]] += binary_counts(tensors[f"pred{i}"], tensors[f"gt{i}"], tensors[f"ignore{i}"])
    intersection, union = counts.permute(2, 1, 0).float()
    torch.testing.assert_close(intersection, tensors["output.intersection"], rtol=1e-5, atol=0)
    torch.testing.assert_close(union, tensors["output.union"], rtol=1e-5, atol=0)
    fold = slice(first, first + 5)
    miou = (intersection[1, fold] / union[1, fold].clamp(min=1)).mean()
    fb_iou = (intersection[:, fold].sum(dim=1) / union[:, fold].sum(dim=1)).mean()
    torch.testing.assert_close(miou, tensors["output.miou"], rtol=1e-5, atol=0)
    torch.testing.assert_close(fb_iou, tensors["output.fb_iou"], rtol=1e-5, atol=0)
