"""The closed-set head: scores of labels by class names, cross-fitting, frozen during training."""

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


def linear_scores(scale: float) -> Any:
    """Return a closed-set network whose three classes are axes of the features."""
    layer = nn.Linear(9, 4)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    layer.weight.data[:3, :3] = scale * torch.eye(3)
    layer.bias.data[3] = scale / 2
    return layer.requires_grad_(False)


def fitted() -> ClosedSetHead:
    """Return a head whose class names are three axes of the text space."""
    head = ClosedSetHead(SHAPE)
    head.names.copy_(torch.eye(8)[:3])
    head.known.fill_(True)
    head.full, head.cross_fit = linear_scores(4.0), [linear_scores(0.0), linear_scores(-4.0)]
    return head


def tokens_of_classes(*axes: int) -> torch.Tensor:
    """Return tokens of a row of patches, each of one class (1, 9, 1, W)."""
    grid = torch.zeros(1, 9, 1, len(axes))
    for place, axis in enumerate(axes):
        grid[0, axis, 0, place] = 2.0
    return grid


def head_outputs(
    head: ClosedSetHead,
    image: torch.Tensor,
    text: torch.Tensor,
    hidden: torch.Tensor | None = None,
    fold: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the maps and the cosine of the nearest name (B, K, C + 1, P)."""
    visual, log = image.flatten(2).split([SHAPE.image_dim, SHAPE.similarity_dim], dim=1)
    maps, near = head(head.encode_image(visual, log, fold), text, hidden)
    return torch.cat([maps, near[..., None, None].expand(*maps.shape[:2], 1, maps.shape[3])], dim=2)


def test_a_label_gets_the_scores_of_its_class_name() -> None:
    side, odds, share, trust = head_outputs(fitted(), tokens_of_classes(0, 1), torch.eye(8)[None, 1:2])[0, 0].unbind()
    assert side[1] > 0 > side[0]
    assert odds[1] > 0 > odds[0]
    assert share[1] > share[0] + 1
    assert trust.tolist() == [1.0, 1.0]


def test_scores_are_those_of_the_closed_set_network() -> None:
    generator = torch.Generator().manual_seed(2)
    head = ClosedSetHead(SHAPE)
    head.known.copy_(torch.tensor([True, False, True]))
    visual, p = torch.rand(2, 4, 2, 3, generator=generator), torch.rand(2, 5, 2, 3, generator=generator)
    logs = log_posterior(p).flatten(2)
    encoded = head.encode_image(visual.flatten(2), logs - logs.mean(dim=1, keepdim=True))
    scores = head.full(features(visual, log_posterior(p)).flatten(2).mT).mT
    torch.testing.assert_close(encoded.log_odds, scores[:, :3] - scores[:, 3:])
    torch.testing.assert_close(encoded.probabilities[:, [0, 2]], scores[:, [0, 2, 3]].softmax(dim=1)[:, :2])
    assert not encoded.probabilities[:, 1].any()  # a class without training images


def test_previous_closed_sets_are_scored_beside_the_current_one() -> None:
    first, second = ClosedSetHead(SHAPE), ClosedSetHead(replace(SHAPE, previous_closed_sets=(3,), closed_set_classes=2))
    third = ClosedSetHead(replace(SHAPE, previous_closed_sets=(3, 2), closed_set_classes=1))
    for number, head in enumerate((first, second, third)):
        if number:
            head.load_previous((first, second)[number - 1])
        head.set_names(
            torch.eye(8)[3 * number : 3 * number + head.num_classes],
            torch.tensor([True, False, True])[: head.num_classes],
        )
    assert torch.equal(third.names, torch.eye(8)[[0, 1, 2, 3, 4, 6]])
    assert third.known.tolist() == [True, False, True, True, False, True]
    seen = torch.rand(2, 4, 6), torch.randn(2, 5, 6)
    encoded = third.encode_image(*seen, split=None)
    for first_row, head, own in ((0, first, 3), (3, second, 2)):
        alone = head.encode_image(*seen)
        torch.testing.assert_close(encoded.log_odds[:, first_row : first_row + own], alone.log_odds[:, -own:])
        torch.testing.assert_close(encoded.probabilities[:, first_row : first_row + own], alone.probabilities[:, -own:])
    assert encoded.log_odds.shape == encoded.probabilities.shape == (2, 6, 6)


def test_a_patch_is_classified_in_context() -> None:
    head = ClosedSetHead(SHAPE)
    alone, beside = torch.rand(1, 4, 2), torch.rand(1, 5, 2)
    before = head.encode_image(alone, beside).log_odds[..., 0]
    alone[..., 1] += 1.0
    assert not torch.allclose(before, head.encode_image(alone, beside).log_odds[..., 0])


def test_a_dropped_label_is_scored_without_its_own_class_name() -> None:
    head, text = fitted(), torch.eye(8)[None, 1:2]
    shown = head_outputs(head, tokens_of_classes(1), text, torch.tensor([[False]]))[0, 0]
    hidden = head_outputs(head, tokens_of_classes(1), text, torch.tensor([[True]]))[0, 0]
    assert hidden[0] < 0 < shown[0]
    assert hidden[3].item() == pytest.approx(-1.0)  # the cosine to the names left is 0


def test_a_hypernym_sums_the_scores_of_its_classes() -> None:
    head = fitted()
    group, far = F.normalize(torch.eye(8)[0] + torch.eye(8)[1], dim=0), torch.eye(8)[7]
    text = torch.stack([torch.eye(8)[0], group, far])[None]
    own, both, neither = head_outputs(head, tokens_of_classes(0, 1, 2), text)[0]
    for channel in (1, 2):  # odds and probabilities, which are summed and not averaged
        assert own[channel, 0] == pytest.approx(both[channel, 0].item(), abs=0.01)
        assert both[channel, 0] == pytest.approx(both[channel, 1].item())
    assert both[1, 2] < 0 < both[1, 1]
    assert both[0, 0] < own[0, 0] - 0.5
    assert neither[2].amax() < own[2, 0] - 1


def test_training_uses_the_network_of_the_other_folds() -> None:
    head = fitted()
    text, image = torch.eye(8)[None, 1:2].expand(4, 1, 8), tokens_of_classes(1).expand(4, -1, -1, -1)
    maps = head_outputs(head, image, text, None, torch.tensor([1, -1, 0, 1]))[:, 0, 0].flatten().tolist()
    assert maps[1] > 0  # a held-out image: the network of all folds
    assert maps[2] == 0.0  # fold 0: the networks of the other folds score 0 here
    assert maps[0] == maps[3] == -maps[1]


def test_cross_fit_networks_are_frozen_and_not_saved() -> None:
    model = Fusioner(SHAPE).train()
    head = model.similarity.closed_set if model.similarity else None
    assert head is not None
    names = set(head.state_dict())
    head.cross_fit = [linear_scores(1.0)]
    assert set(head.state_dict()) == names
    image = torch.cat([torch.rand(2, 4, 3, 3), torch.rand(2, 5, 3, 3) + 0.1], dim=1)
    one, other = (head.encode_image(*(part.flatten(2) for part in model.split_channels(image))) for _ in range(2))
    for one_part, other_part in zip(one, other, strict=True):
        assert torch.equal(one_part, other_part)  # no dropout
    model(image, torch.eye(8)[None, :2].expand(2, -1, -1)).sum().backward()
    assert all(parameter.grad is None for parameter in head.parameters())
    groups = build_optimizer(model, OptimOptions()).param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in head.parameters()}


def test_features_are_invariant_to_the_scale_of_the_posterior() -> None:
    posterior = torch.rand(1, 5, 2, 2) + 0.01
    visual = F.normalize(torch.rand(1, 4, 2, 2), dim=1)
    one, other = (features(visual, log_posterior(scale * posterior)) for scale in (1.0, 7.0))
    torch.testing.assert_close(one, other)
    assert one.shape == (1, 9, 2, 2)


def test_a_network_without_a_closed_set_head() -> None:
    image = torch.cat([torch.rand(1, 4, 3, 3), torch.rand(1, 5, 3, 3) + 0.1], dim=1)
    logits = Fusioner(SHAPE).eval()(image, torch.eye(8)[None, :2])
    assert logits.shape == (1, 2, 3, 3)
    assert logits.isfinite().all()
    with pytest.raises(FusionerError, match="needs a classifier's posterior"):
        FusionerConfig(closed_set_classes=3)
