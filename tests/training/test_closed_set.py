"""The fit of a closed-set segmenter, on images whose every class is known."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusioner.data.base import Item
from fusioner.training import closed_set as memory
from fusioner.training.closed_set import ClosedSetDataset, FitCache, PatchBatch, SampleView, fit_closed_set
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Sample, cross_fit_fold

CONFIG = TrainConfig()
PATCHES = 6
NONE = -torch.inf


class Toy(ClosedSetDataset):
    """Images of six patches in a row, of any scale; all patches of an image show what its first patch says.

    Args:
        sets: rows that the two kinds of images have in each data set; the last row is "anything else".
    """

    def __init__(self, images: int, sets: Sequence[tuple[int, int]] = ((0, 2),), names: int = 2) -> None:
        generator = torch.Generator().manual_seed(images)
        self.width, self.sets = 3, sets
        self.samples = [Sample(i % len(sets), Item(f"{i}", Path(), Path()), None) for i in range(images)]
        self.kinds = torch.randint(2, (images,), generator=generator)
        seen = torch.randn(images, PATCHES, 3, generator=generator)
        seen[:, 0, 0] = 6.0 * self.kinds - 3.0
        self.seen = 50.0 + seen * torch.tensor([20.0, 0.01, 1.0])
        self.allowed = torch.full((len(sets), names + 1), NONE)
        for split, rows in enumerate(sets):
            self.allowed[split, [*rows, names]] = 0.0
        shown = [torch.bincount(self.rows(i), minlength=names + 1) for i in range(images)]
        self.counts = torch.stack([torch.zeros(names + 1, dtype=torch.long), *shown])[1:]

    def rows(self, image: int) -> Tensor:
        return torch.full((PATCHES,), self.sets[self.samples[image].split][int(self.kinds[image])])

    def views(self, sample: Sample) -> int:
        return 1

    def read(self, views: Sequence[SampleView]) -> PatchBatch:
        numbers = [int(look.sample.item.id) for look in views]
        rows = torch.stack([self.rows(i) for i in numbers])
        rows[:, 1] = -1  # nobody looked
        return PatchBatch(self.seen[numbers], rows, torch.tensor([look.sample.split for look in views]))


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """How well it is fitted does not matter."""
    monkeypatch.setattr(memory, "MIN_STEPS", 5)
    monkeypatch.setattr(memory, "MAX_STEPS", 5)


def right(lessons: Toy, network: torch.nn.Module, split: int = 0) -> float:
    """Share of patches named right among the names of their own set."""
    mine = [i for i, sample in enumerate(lessons.samples) if sample.split == split]
    scores = network(lessons.seen[mine]) + lessons.allowed[split]
    return float((scores.argmax(dim=2) == torch.stack([lessons.rows(i) for i in mine])).float().mean())


def test_what_a_patch_shows_is_learnt_from_the_patches_around_it_whatever_the_scale() -> None:
    network = fit_closed_set(Toy(100), CONFIG)
    assert right(Toy(60), network) > 0.95
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_share_of_the_patches_at_a_time_teaches_all_of_them() -> None:
    """Two of the six in a step: the one that tells is among them now and then, and no patch is left out for good."""
    lessons = Toy(100)
    lessons.seen[..., 0] = lessons.seen[:, :1, 0] + 20.0 * torch.randn(100, PATCHES)  # every patch hints at the answer
    one, other = (fit_closed_set(lessons, CONFIG.override(closed_set_patch_ratio=share)) for share in (1.0, 0.34))
    assert min(right(lessons, one), right(lessons, other)) > 0.95


@pytest.mark.usefixtures("few_steps")
def test_what_is_common_is_no_likelier_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A patch that could be either goes to what is shown more often, unless that is taken away again."""
    lessons = Toy(100)
    lessons.kinds = (torch.arange(100) % 10 == 0).long()
    lessons.counts = torch.stack([torch.bincount(lessons.rows(i), minlength=3) for i in range(100)])
    odds = []
    for adjustment in (0.0, 0.5):
        monkeypatch.setattr(memory, "LOGIT_ADJUSTMENT", adjustment)
        scores = fit_closed_set(lessons, CONFIG)(lessons.seen)
        odds.append(scores[..., 0] - scores[..., 2])
    torch.testing.assert_close(odds[0] - odds[1], torch.full_like(odds[0], 0.5 * math.log(9)), atol=1e-3, rtol=0)


def test_names_of_other_sets_do_not_compete() -> None:
    """Two sets show the same looks, each with words of its own: neither teaches that the other's are wrong."""
    sets = ((0, 1), (2, 3))
    network, new = fit_closed_set(Toy(100, sets, 4), CONFIG), Toy(60, sets, 4)
    assert min(right(new, network, split) for split in range(2)) > 0.95


def test_a_portion_left_out_is_not_looked_at() -> None:
    lessons = Toy(60)
    for i, sample in enumerate(lessons.samples):  # what that portion shows is nonsense
        if cross_fit_fold(sample.item.id) == 0:
            lessons.kinds[i] = 1 - lessons.kinds[i]
    assert right(Toy(50), fit_closed_set(lessons, CONFIG, excluded_fold=0)) > 0.9


@pytest.mark.usefixtures("few_steps")
def test_a_fit_leaves_torchs_random_numbers_alone_and_repeats() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = (fit_closed_set(Toy(9), CONFIG.override(seed=3)).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_kept_is_read_again_where_it_is_whole_and_fits(tmp_path: Path) -> None:
    stored, state = FitCache(tmp_path / "memory", "these images"), {"first": torch.rand(2, 3)}
    assert stored.get("but_0") is None
    FitCache(tmp_path / "memory", "these images", writes=False).put("but_0", state)
    assert stored.get("but_0") is None
    stored.put("but_0", state)
    found = stored.get("but_0")
    assert found is not None
    assert torch.equal(found["first"], state["first"])
    assert FitCache(tmp_path / "memory", "others").get("but_0") is None
    (tmp_path / "memory" / "but_0.safetensors").write_bytes(b"half")
    assert stored.get("but_0") is None


def test_nothing_seen_is_nothing_remembered() -> None:
    assert not fit_closed_set(Toy(0), CONFIG)(torch.rand(1, PATCHES, 3)).any()
