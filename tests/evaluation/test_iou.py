"""Compare the pixel counts with the Jaccard index of boolean masks, class by class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner.evaluation.evaluator import binary_counts, confusion_matrix


def masks(seed: int, classes: int, images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw predictions and targets, some of them 255 = ignore."""
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, (images, 7, 9), generator=generator)
    target = torch.randint(0, classes, (images, 7, 9), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    return prediction, target


def jaccard(prediction: torch.Tensor, target: torch.Tensor, class_id: int) -> float:
    """Return intersection over union of a class, among the pixels that are not ignored."""
    predicted, labelled = (prediction == class_id) & (target != 255), target == class_id
    return int((predicted & labelled).sum()) / int((predicted | labelled).sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7))
def test_the_confusion_matrix_gives_the_jaccard_index_of_each_class(seed: int, classes: int):
    prediction, target = masks(seed, classes)
    counts = sum(confusion_matrix(*maps, classes) for maps in zip(prediction, target, strict=True))
    assert isinstance(counts, torch.Tensor)
    for class_id in target.unique().tolist():
        if class_id != 255:
            inside, truth, predicted = counts[class_id, class_id], counts[class_id].sum(), counts[:, class_id].sum()
            assert inside / (truth + predicted - inside) == pytest.approx(jaccard(prediction, target, class_id))
    assert counts.sum() == (target != 255).sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_binary_counts_give_the_jaccard_index(seed: int):
    for class_id in (1, 3):
        prediction, target = masks(seed + class_id, 2)
        intersection, union = binary_counts(prediction, target == 1, target == 255)[1]
        assert float(intersection / union) == pytest.approx(jaccard(prediction, target, 1))


def test_binary_counts_by_hand():
    prediction, target = torch.tensor([[1, 1, 0, 0, 1]]), torch.tensor([[1, 0, 0, 1, 1]])
    ignore = torch.tensor([[0, 0, 0, 0, 1]])
    assert binary_counts(prediction, target, ignore).tolist() == [[1, 3], [1, 3]]
    assert binary_counts(prediction, target).tolist() == [[1, 3], [2, 4]]


def test_perfect_and_empty_predictions():
    target = torch.tensor([[0, 1, 1, 255]])
    assert binary_counts(target == 1, target == 1, target == 255).tolist() == [[1, 1], [2, 2]]
    assert binary_counts(torch.zeros_like(target), target == 1, target == 255).tolist() == [[1, 3], [0, 2]]
