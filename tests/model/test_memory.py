"""The closed-set head: names found, classes left out, frozen during training."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusioner.errors import FusionerError
from fusioner.model.closed_set_head import ClosedSetHead, features, log_posterior
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.training.config import OptimOptions
from fusioner.training.optim import build_optimizer

SHAPE = FusionerConfig(
    image_dim=4, text_dim=8, width=8, heads=2, layers=1, decoder_widths=(4,), similarity="posterior", similarity_dim=5,
    closed_set_classes=3,
)  # fmt: skip


def looks(scale: float) -> Any:
    """What a closed-set segmenter would say: each of three names looks like one axis of the features."""
    layer = nn.Linear(9, 4)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    layer.weight.data[:3, :3] = scale * torch.eye(3)
    layer.bias.data[3] = scale / 2
    return layer.requires_grad_(False)


def fitted() -> ClosedSetHead:
    """Three names along three axes of text space."""
    memory = ClosedSetHead(SHAPE)
    memory.names.copy_(torch.eye(8)[:3])
    memory.known.fill_(True)
    memory.full, memory.cross_fit = looks(4.0), [looks(0.0), looks(-4.0)]
    return memory


def looking_like(*axes: int) -> torch.Tensor:
    grid = torch.zeros(1, 9, 1, len(axes))
    for place, axis in enumerate(axes):
        grid[0, axis, 0, place] = 2.0
    return grid


def read(
    memory: ClosedSetHead,
    looks: torch.Tensor,
    text: torch.Tensor,
    hidden: torch.Tensor | None = None,
    portion: torch.Tensor | None = None,
) -> torch.Tensor:
    """The maps and how near the nearest name is (B, K, C + 1, P), of patches with these features."""
    visual, log = looks.flatten(2).split([SHAPE.image_dim, SHAPE.similarity_dim], dim=1)
    maps, near = memory(memory.encode_image(visual, log, portion), text, hidden)
    return torch.cat([maps, near[..., None, None].expand(*maps.shape[:2], 1, maps.shape[3])], dim=2)


def test_a_label_reads_the_look_of_its_name() -> None:
    side, odds, share, trust = read(fitted(), looking_like(0, 1), torch.eye(8)[None, 1:2])[0, 0].unbind()
    assert side[1] > 0 > side[0]
    assert odds[1] > 0 > odds[0]
    assert share[1] > share[0] + 1
    assert trust.tolist() == [1.0, 1.0]


def test_what_is_recalled_is_the_closed_sets_answer_to_the_features() -> None:
    generator = torch.Generator().manual_seed(2)
    memory = ClosedSetHead(SHAPE)
    memory.known.copy_(torch.tensor([True, False, True]))
    visual, p = torch.rand(2, 4, 2, 3, generator=generator), torch.rand(2, 5, 2, 3, generator=generator)
    logs = log_posterior(p).flatten(2)
    recalled = memory.encode_image(visual.flatten(2), logs - logs.mean(dim=1, keepdim=True))
    scores = memory.full(features(visual, log_posterior(p)).flatten(2).mT).mT
    torch.testing.assert_close(recalled.log_odds, scores[:, :3] - scores[:, 3:])
    torch.testing.assert_close(recalled.probabilities[:, [0, 2]], scores[:, [0, 2, 3]].softmax(dim=1)[:, :2])
    assert not recalled.probabilities[:, 1].any()  # a name that no training image showed has no share


def test_what_earlier_trainings_taught_is_recalled_beside_what_its_own_did() -> None:
    first, second = ClosedSetHead(SHAPE), ClosedSetHead(replace(SHAPE, previous_closed_sets=(3,), closed_set_classes=2))
    third = ClosedSetHead(replace(SHAPE, previous_closed_sets=(3, 2), closed_set_classes=1))
    for number, memory in enumerate((first, second, third)):
        if number:
            memory.load_previous((first, second)[number - 1])
        memory.set_names(
            torch.eye(8)[3 * number : 3 * number + memory.num_classes],
            torch.tensor([True, False, True])[: memory.num_classes],
        )
    assert torch.equal(third.names, torch.eye(8)[[0, 1, 2, 3, 4, 6]])
    assert third.known.tolist() == [True, False, True, True, False, True]
    seen = torch.rand(2, 4, 6), torch.randn(2, 5, 6)
    recalled = third.encode_image(*seen, split=None)
    for first_row, memory, own in ((0, first, 3), (3, second, 2)):
        alone = memory.encode_image(*seen)
        torch.testing.assert_close(recalled.log_odds[:, first_row : first_row + own], alone.log_odds[:, -own:])
        torch.testing.assert_close(
            recalled.probabilities[:, first_row : first_row + own], alone.probabilities[:, -own:]
        )
    assert recalled.log_odds.shape == recalled.probabilities.shape == (2, 6, 6)


def test_a_patch_is_judged_in_its_surroundings() -> None:
    memory = ClosedSetHead(SHAPE)
    alone, beside = torch.rand(1, 4, 2), torch.rand(1, 5, 2)
    before = memory.encode_image(alone, beside).log_odds[..., 0]
    alone[..., 1] += 1.0
    assert not torch.allclose(before, memory.encode_image(alone, beside).log_odds[..., 0])


def test_a_hidden_label_does_without_its_own_name() -> None:
    memory, text = fitted(), torch.eye(8)[None, 1:2]
    shown = read(memory, looking_like(1), text, torch.tensor([[False]]))[0, 0]
    hidden = read(memory, looking_like(1), text, torch.tensor([[True]]))[0, 0]
    assert hidden[0] < 0 < shown[0]
    assert hidden[3].item() == pytest.approx(-1.0)  # the cosine to the names left is 0


def test_a_word_for_several_names_is_there_where_any_of_them_is() -> None:
    """Each by itself as surely as under its own name, and a word for neither name nowhere."""
    memory = fitted()
    group, far = F.normalize(torch.eye(8)[0] + torch.eye(8)[1], dim=0), torch.eye(8)[7]
    text = torch.stack([torch.eye(8)[0], group, far])[None]
    own, both, neither = read(memory, looking_like(0, 1, 2), text)[0]
    for channel in (1, 2):  # odds and shares; a mean would know each by half
        assert own[channel, 0] == pytest.approx(both[channel, 0].item(), abs=0.01)
        assert both[channel, 0] == pytest.approx(both[channel, 1].item())
    assert both[1, 2] < 0 < both[1, 1]
    assert both[0, 0] < own[0, 0] - 0.5
    assert neither[2].amax() < own[2, 0] - 1


def test_training_reads_what_the_other_portions_taught() -> None:
    memory = fitted()
    text, image = torch.eye(8)[None, 1:2].expand(4, 1, 8), looking_like(1).expand(4, -1, -1, -1)
    sides = read(memory, image, text, None, torch.tensor([1, -1, 0, 1]))[:, 0, 0].flatten().tolist()
    assert sides[1] > 0  # a held-out image: everything
    assert sides[2] == 0.0  # portion 0: the others taught nothing here
    assert sides[0] == sides[3] == -sides[1]


def test_what_only_training_needs_is_not_saved_and_training_changes_nothing() -> None:
    model = Fusioner(SHAPE).train()
    memory = model.similarity.closed_set if model.similarity else None
    assert memory is not None
    names = set(memory.state_dict())
    memory.cross_fit = [looks(1.0)]
    assert set(memory.state_dict()) == names
    image = torch.cat([torch.rand(2, 4, 3, 3), torch.rand(2, 5, 3, 3) + 0.1], dim=1)
    one, other = (memory.encode_image(*(part.flatten(2) for part in model.split_channels(image))) for _ in range(2))
    for one_part, other_part in zip(one, other, strict=True):
        assert torch.equal(one_part, other_part)  # no dropout
    model(image, torch.eye(8)[None, :2].expand(2, -1, -1)).sum().backward()
    assert all(parameter.grad is None for parameter in memory.parameters())
    groups = build_optimizer(model, OptimOptions()).param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in memory.parameters()}


def test_features_ignore_the_scale_of_the_posterior() -> None:
    posterior = torch.rand(1, 5, 2, 2) + 0.01
    visual = F.normalize(torch.rand(1, 4, 2, 2), dim=1)
    one, other = (features(visual, log_posterior(scale * posterior)) for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)
    assert one.shape == (1, 9, 2, 2)


def test_the_network_is_what_it_was_without_a_memory_and_answers_with_one() -> None:
    image = torch.cat([torch.rand(1, 4, 3, 3), torch.rand(1, 5, 3, 3) + 0.1], dim=1)
    logits = Fusioner(SHAPE).eval()(image, torch.eye(8)[None, :2])
    assert logits.shape == (1, 2, 3, 3)
    assert logits.isfinite().all()
    with pytest.raises(FusionerError, match="needs a classifier's posterior"):
        FusionerConfig(closed_set_classes=3)
