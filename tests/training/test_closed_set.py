"""`fit_closed_set` on generated patches."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusioner.data.base import Item
from fusioner.training import closed_set
from fusioner.training.closed_set import ClosedSetDataset, FitCache, PatchBatch, SampleView, fit_closed_set
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Sample, cross_fit_fold

CONFIG = TrainConfig()
PATCHES = 6
NONE = -torch.inf


class SyntheticDataset(ClosedSetDataset):
    """Images of six patches of one class, which only the features of the first patch reveal; unnormalised features.

    Args:
        sets: the two class indices of each split; the last class is "other".
    """

    def __init__(self, images: int, sets: Sequence[tuple[int, int]] = ((0, 2),), names: int = 2) -> None:
        generator = torch.Generator().manual_seed(images)
        self.width, self.sets = 3, sets
        self.samples = [Sample(i % len(sets), Item(f"{i}", Path(), Path()), None) for i in range(images)]
        self.targets = torch.randint(2, (images,), generator=generator)
        inputs = torch.randn(images, PATCHES, 3, generator=generator)
        inputs[:, 0, 0] = 6.0 * self.targets - 3.0
        self.inputs = 50.0 + inputs * torch.tensor([20.0, 0.01, 1.0])
        self.allowed = torch.full((len(sets), names + 1), NONE)
        for split, classes in enumerate(sets):
            self.allowed[split, [*classes, names]] = 0.0
        counts = [torch.bincount(self.labels(i), minlength=names + 1) for i in range(images)]
        self.counts = torch.stack([torch.zeros(names + 1, dtype=torch.long), *counts])[1:]

    def labels(self, image: int) -> Tensor:
        return torch.full((PATCHES,), self.sets[self.samples[image].split][int(self.targets[image])])

    def views(self, sample: Sample) -> int:
        return 1

    def read(self, views: Sequence[SampleView]) -> PatchBatch:
        numbers = [int(view.sample.item.id) for view in views]
        labels = torch.stack([self.labels(i) for i in numbers])
        labels[:, 1] = -1  # ignored
        return PatchBatch(self.inputs[numbers], labels, torch.tensor([view.sample.split for view in views]))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps a fit, for tests that do not measure accuracy."""
    monkeypatch.setattr(closed_set, "MAX_STEPS", 5)


def accuracy(dataset: SyntheticDataset, network: torch.nn.Module, split: int = 0) -> float:
    """Return the accuracy over the patches of a split, among its own classes."""
    images = [i for i, sample in enumerate(dataset.samples) if sample.split == split]
    scores = network(dataset.inputs[images]) + dataset.allowed[split]
    return float((scores.argmax(dim=2) == torch.stack([dataset.labels(i) for i in images])).float().mean())


def test_patches_are_classified_from_their_context_at_any_feature_scale() -> None:
    network = fit_closed_set(SyntheticDataset(100), CONFIG)
    assert accuracy(SyntheticDataset(60), network) > 0.95
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_share_of_the_patches_per_step_trains_on_all_of_them() -> None:
    dataset = SyntheticDataset(100)
    dataset.inputs[..., 0] = dataset.inputs[:, :1, 0] + 20.0 * torch.randn(100, PATCHES)  # every patch is informative
    one, other = (fit_closed_set(dataset, CONFIG.override(closed_set_patch_ratio=share)) for share in (1.0, 0.34))
    assert min(accuracy(dataset, one), accuracy(dataset, other)) > 0.95


@pytest.mark.usefixtures("few_steps")
def test_logits_are_adjusted_for_class_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SyntheticDataset(100)
    dataset.targets = (torch.arange(100) % 10 == 0).long()
    dataset.counts = torch.stack([torch.bincount(dataset.labels(i), minlength=3) for i in range(100)])
    odds = []
    for adjustment in (0.0, 0.5):
        monkeypatch.setattr(closed_set, "LOGIT_ADJUSTMENT", adjustment)
        scores = fit_closed_set(dataset, CONFIG)(dataset.inputs)
        odds.append(scores[..., 0] - scores[..., 2])
    torch.testing.assert_close(odds[0] - odds[1], torch.full_like(odds[0], 0.5 * math.log(9)), atol=1e-3, rtol=0)


def test_classes_of_other_splits_do_not_compete() -> None:
    """Two splits show the same features under different class names; neither penalises the other's names."""
    sets = ((0, 1), (2, 3))
    network, new = fit_closed_set(SyntheticDataset(100, sets, 4), CONFIG), SyntheticDataset(60, sets, 4)
    assert min(accuracy(new, network, split) for split in range(2)) > 0.95


def test_an_excluded_fold_is_not_trained_on() -> None:
    dataset = SyntheticDataset(60)
    for i, sample in enumerate(dataset.samples):  # wrong labels in that fold
        if cross_fit_fold(sample.item.id) == 0:
            dataset.targets[i] = 1 - dataset.targets[i]
    assert accuracy(SyntheticDataset(50), fit_closed_set(dataset, CONFIG, excluded_fold=0)) > 0.9


@pytest.mark.usefixtures("few_steps")
def test_a_fit_is_deterministic_and_leaves_the_global_generator_unchanged() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = (fit_closed_set(SyntheticDataset(9), CONFIG.override(seed=3)).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fit_cache_returns_complete_entries_of_the_same_key(tmp_path: Path) -> None:
    stored, state = FitCache(tmp_path / "fits", "key"), {"first": torch.rand(2, 3)}
    assert stored.get("without_0") is None
    FitCache(tmp_path / "fits", "key", writes=False).put("without_0", state)
    assert stored.get("without_0") is None
    stored.put("without_0", state)
    found = stored.get("without_0")
    assert found is not None
    assert torch.equal(found["first"], state["first"])
    assert FitCache(tmp_path / "fits", "another key").get("without_0") is None
    (tmp_path / "fits" / "without_0.safetensors").write_bytes(b"half")
    assert stored.get("without_0") is None


def test_without_images_all_logits_are_zero() -> None:
    assert not fit_closed_set(SyntheticDataset(0), CONFIG)(torch.rand(1, PATCHES, 3)).any()
