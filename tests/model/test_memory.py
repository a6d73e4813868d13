"""The memory: discriminants that are right where they can be checked, names found, and what is left out left out."""

import pytest
import torch

from fusioner.errors import FusionerError
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.memory import LOG, SOFT, VISUAL, Memory, features, log_posterior
from fusioner.training.memory import Moments

SHAPE = FusionerConfig(
    image_dim=4, text_dim=8, width=8, heads=2, layers=1, decoder_widths=(4,), similarity="posterior", aligned_dim=5,
    memory=3,
)  # fmt: skip


def fitted() -> Memory:
    """Three names along three axes of text space, each looking like one axis of the features."""
    memory = Memory(SHAPE)
    memory.names.copy_(torch.eye(8)[:3])
    memory.looks[:3, :3] = 8.0 * torch.eye(3)
    memory.floors.fill_(8.0)
    memory.cross_looks = torch.zeros(2, 4, 9)
    memory.cross_floors = torch.zeros(2, 4)
    memory.cross_centre = torch.zeros(2, 9)
    return memory


def looking_like(*axes: int) -> torch.Tensor:
    grid = torch.zeros(1, 9, 1, len(axes))
    for place, axis in enumerate(axes):
        grid[0, axis, 0, place] = 2.0
    return grid


def read(
    memory: Memory,
    looks: torch.Tensor,
    text: torch.Tensor,
    hidden: torch.Tensor | None = None,
    portion: torch.Tensor | None = None,
) -> torch.Tensor:
    """The maps (B, K, C, P) of patches with these features."""
    visual, log = looks.flatten(2).split([SHAPE.image_dim, SHAPE.aligned_dim], dim=1)
    return memory(memory.look(visual / VISUAL, log / LOG, portion), text, hidden)


def test_a_label_reads_the_look_of_its_name() -> None:
    side, share, trust = read(fitted(), looking_like(0, 1), torch.eye(8)[None, 1:2])[0, 0].unbind()
    assert side[1] > 0 > side[0]
    assert share[1] > share[0] + 1
    assert trust.tolist() == [1.0, 1.0]


def test_what_is_recalled_are_the_discriminants_of_the_features() -> None:
    generator = torch.Generator().manual_seed(2)
    memory = Memory(SHAPE)
    for buffer in (memory.looks, memory.floors, memory.centre):
        buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.1)
    visual, p = torch.rand(2, 4, 2, 3, generator=generator), torch.rand(2, 5, 2, 3, generator=generator)
    logs = log_posterior(p).flatten(2)
    recalled = memory.look(visual.flatten(2), logs - logs.mean(dim=1, keepdim=True))
    seen = features(visual, log_posterior(p)).flatten(2) - memory.centre[:, None]
    scores = memory.looks @ seen - memory.floors[:, None]
    deviations = (2 * memory.floors[:, None]).sqrt().clamp_min(1.0)
    torch.testing.assert_close(recalled.sides, (scores / deviations)[:, :-1])
    torch.testing.assert_close(recalled.shares, (scores / SOFT).softmax(dim=1)[:, :-1])


def test_a_hidden_label_does_without_its_own_name() -> None:
    memory, text = fitted(), torch.eye(8)[None, 1:2]
    shown = read(memory, looking_like(1), text, torch.tensor([[False]]))[0, 0]
    hidden = read(memory, looking_like(1), text, torch.tensor([[True]]))[0, 0]
    assert hidden[0] < 0 < shown[0]
    assert hidden[2].item() == pytest.approx(-1.0)  # the cosine to the names left is 0


def test_training_reads_what_the_other_portions_taught() -> None:
    memory = fitted()
    text, image = torch.eye(8)[None, 1:2].expand(3, 1, 8), looking_like(1).expand(3, -1, -1, -1)
    own, left_out, _ = read(memory, image, text, None, torch.tensor([-1, 0, 1]))[:, 0, 0].flatten(1).unbind()
    assert own > 0  # a held-out image: everything
    assert left_out.item() == 0.0  # portion 0: the others taught nothing here


def test_what_only_training_needs_is_not_saved() -> None:
    assert {name.rpartition(".")[2] for name in Memory(SHAPE).state_dict()} == {"names", "looks", "floors", "centre"}


def test_discriminants_separate_what_one_covariance_describes() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.zeros(3, 20)
    means[0, :2], means[1, :2] = torch.tensor([3.0, 3.0]), torch.tensor([-3.0, 3.0])
    spread = torch.ones(20)
    spread[1] = 8.0  # the second feature tells them apart, but it is noise
    moments = Moments(4, 20)
    for _ in range(60):
        rows = torch.arange(3).repeat_interleave(40)
        drawn = means[rows] + spread * torch.randn(120, 20, generator=generator)
        ignored = torch.where(torch.arange(120) % 40 == 0, -1, rows)
        drawn[ignored < 0] = 1e6  # counts nowhere
        moments.add(drawn, ignored)
    looks, floors, centre = moments.discriminants()
    assert moments.count.tolist() == [60, 60, 60, 0]
    assert not looks[3].any()
    rows = torch.arange(3).repeat_interleave(500)
    drawn = means[rows] + spread * torch.randn(1500, 20, generator=generator)
    scores = (drawn - centre) @ looks[:3].T - floors[:3]
    nearest = torch.cdist(drawn, means).argmin(dim=1)  # what one gets without knowing the noisy direction
    right, naive = (scores.argmax(dim=1) == rows).float().mean(), (nearest == rows).float().mean()
    assert right > naive + 0.1


def test_portions_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    parts = [Moments(2, 3) for _ in range(3)]
    for part in parts:
        part.add(torch.randn(20, 3, generator=generator), torch.arange(20) % 2)
    whole = parts[0] + parts[1] + parts[2]
    rest = (whole - parts[2]).discriminants()
    for one, other in zip(rest, (parts[0] + parts[1]).discriminants(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_nothing_seen_is_nothing_remembered() -> None:
    looks, floors, centre = Moments(2, 3).discriminants()
    assert not torch.cat([looks.flatten(), floors, centre]).any()


def test_features_ignore_the_scale_of_the_posterior() -> None:
    posterior = torch.rand(1, 5, 2, 2) + 0.01
    visual = torch.nn.functional.normalize(torch.rand(1, 4, 2, 2), dim=1)
    one, other = (features(visual, log_posterior(scale * posterior)) for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)
    assert one.shape == (1, 9, 2, 2)


def test_the_network_is_what_it_was_without_a_memory_and_answers_with_one() -> None:
    image = torch.cat([torch.rand(1, 4, 3, 3), torch.rand(1, 5, 3, 3) + 0.1], dim=1)
    logits = Fusioner(SHAPE).eval()(image, torch.eye(8)[None, :2])
    assert logits.shape == (1, 2, 3, 3)
    assert logits.isfinite().all()
    with pytest.raises(FusionerError, match="it needs similarity"):
        FusionerConfig(memory=3)
