"""The metrics against torchmetrics' Jaccard index on random masks, and split over two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import BinaryJaccardIndex, MulticlassJaccardIndex

from fusioner.evaluation.metrics import ConfusionIoU, FoldIoU, binary_counts


def masks(seed: int, classes: int, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and targets (some of them 255 = ignore)."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (images, 7, 9), generator=generator)
    target = torch.randint(0, classes, (images, 7, 9), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return prediction, target


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_confusion_iou_agrees_with_torchmetrics(seed: int, classes: int):
    prediction, target = masks(seed, classes)
    ours = ConfusionIoU(classes)
    for one_prediction, one_target in zip(prediction, target, strict=True):
        ours.update(one_prediction, one_target)
    theirs = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
    theirs.update(prediction, target)
    result, expected = ours.compute(), theirs.compute()
    present = torch.tensor([(target == i).any() for i in range(classes)])
    torch.testing.assert_close(result["per_class"][present].float(), expected[present])
    assert result["per_class"][~present].isnan().all()
    if present[1:].any():
        torch.testing.assert_close(result["miou"].float(), expected[1:][present[1:]].mean())
    assert result["confusion"].sum() == (target != 255).sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_fold_iou_agrees_with_torchmetrics_on_each_class(seed: int):
    metric = FoldIoU(class_ids=[3, 1], num_classes=5)
    expected = []
    for class_id in (1, 3):
        prediction, target = masks(seed + class_id, 2)
        metric.update(prediction, target == 1, class_id, target == 255)
        jaccard = BinaryJaccardIndex(ignore_index=255)
        jaccard.update(prediction, target)
        expected.append(jaccard.compute())
    result = metric.compute()
    torch.testing.assert_close(result["per_class"].float(), torch.stack(expected))
    torch.testing.assert_close(result["miou"].float(), torch.stack(expected).mean())


def test_binary_counts_by_hand():
    prediction, target = torch.tensor([[1, 1, 0, 0, 1]]), torch.tensor([[1, 0, 0, 1, 1]])
    ignore = torch.tensor([[0, 0, 0, 0, 1]])
    assert binary_counts(prediction, target, ignore).tolist() == [[1, 3], [1, 3]]
    assert binary_counts(prediction, target).tolist() == [[1, 3], [2, 4]]


def test_perfect_and_empty_predictions():
    target = torch.tensor([[0, 1, 1, 255]])
    perfect, empty = FoldIoU([1], 2), FoldIoU([1], 2)
    perfect.update(target == 1, target == 1, 1, target == 255)
    empty.update(torch.zeros_like(target), target == 1, 1, target == 255)
    assert perfect.compute()["miou"] == 1
    assert empty.compute()["miou"] == 0
    assert empty.compute()["fb_iou"] == pytest.approx(1 / 6)


def test_wrong_class_ids_are_refused():
    for ids in ([], [5], [-1, 2]):
        with pytest.raises(ValueError, match=r"0\.\.4"):
            FoldIoU(ids, 5)


def work(port: str, out: str, rank: int) -> None:
    """One of two processes: sees every second image, computes the result of all."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    fold, argmax = FoldIoU([1, 2], 3), ConfusionIoU(4)
    for i in range(rank, 6, 2):
        prediction, target = masks(i, 2)
        fold.update(prediction, target == 1, 1 + i % 2, target == 255)
        argmax.update(*masks(i, 4))
    torch.save({**fold.compute(), "argmax": argmax.compute()["per_class"]}, Path(out) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    fold, argmax = FoldIoU([1, 2], 3), ConfusionIoU(4)
    for i in range(6):
        prediction, target = masks(i, 2)
        fold.update(prediction, target == 1, 1 + i % 2, target == 255)
        argmax.update(*masks(i, 4))
    alone = {**fold.compute(), "argmax": argmax.compute()["per_class"]}
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, rtol=0, atol=0)


if __name__ == "__main__":  # one of the two processes of the test above
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]))
