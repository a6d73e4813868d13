"""The memory: a perceptron that is right where it can be checked, names found, and what is left out left out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusioner.errors import FusionerError
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.memory import PARTS, UNITS, Memory, features, log_posterior
from fusioner.training.memory import Patches, fit_perceptron

SHAPE = FusionerConfig(
    image_dim=4, text_dim=8, width=8, heads=2, layers=1, decoder_widths=(4,), similarity="posterior", aligned_dim=5,
    memory=3,
)  # fmt: skip


def fitted() -> Memory:
    """Three names along three axes of text space, each looking like one axis of the features."""
    memory = Memory(SHAPE)
    memory.names.copy_(torch.eye(8)[:3])
    memory.known.fill_(True)
    memory.first[:3, :3] = 4.0 * torch.eye(3)
    memory.second[:3, :3] = torch.eye(3)
    memory.second_bias[3] = 2.0
    for name in PARTS:
        setattr(memory, f"cross_{name}", torch.zeros(2, *getattr(memory, name).shape))
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
    return memory(memory.look(visual, log, portion), text, hidden)


def test_a_label_reads_the_look_of_its_name() -> None:
    side, share, trust = read(fitted(), looking_like(0, 1), torch.eye(8)[None, 1:2])[0, 0].unbind()
    assert side[1] > 0 > side[0]
    assert share[1] > share[0] + 1
    assert trust.tolist() == [1.0, 1.0]


def test_what_is_recalled_is_a_perceptrons_answer_to_the_features() -> None:
    generator = torch.Generator().manual_seed(2)
    memory = Memory(SHAPE)
    for name in PARTS:
        getattr(memory, name).copy_(torch.randn(getattr(memory, name).shape, generator=generator))
    memory.known.copy_(torch.tensor([True, False, True]))
    visual, p = torch.rand(2, 4, 2, 3, generator=generator), torch.rand(2, 5, 2, 3, generator=generator)
    logs = log_posterior(p).flatten(2)
    recalled = memory.look(visual.flatten(2), logs - logs.mean(dim=1, keepdim=True))
    network = nn.Sequential(nn.Linear(9, UNITS), nn.GELU(), nn.Linear(UNITS, 4))
    network.load_state_dict(dict(zip(network.state_dict(), (getattr(memory, name) for name in PARTS), strict=True)))
    with torch.no_grad():
        scores = network(features(visual, log_posterior(p)).flatten(2).mT).mT
    torch.testing.assert_close(recalled.sides, scores[:, :3] - scores[:, 3:])
    torch.testing.assert_close(recalled.shares[:, [0, 2]], scores[:, [0, 2, 3]].softmax(dim=1)[:, :2])
    assert not recalled.shares[:, 1].any()  # a name that no training image showed has no share


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
    assert {name.rpartition(".")[2] for name in Memory(SHAPE).state_dict()} == {"names", "known", *PARTS}


def circles(count: int, seed: int) -> Patches:
    """Two names that no straight line tells apart, a ring about a disc, among what is neither."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(3, (count,), generator=generator)
    radius = torch.tensor([0.5, 2.0, 4.0])[rows] + 0.2 * torch.randn(count, generator=generator)
    turn = 6.3 * torch.rand(count, generator=generator)
    found = torch.stack([30 + 50 * radius * turn.cos(), 0.01 * radius * turn.sin()], dim=1)  # of any scale
    return Patches(found.half(), rows, torch.zeros_like(rows), torch.arange(count) % 4)


def answer(patches: Patches, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    first, first_bias, second, second_bias = parts
    return F.gelu(patches.features.float() @ first.T + first_bias) @ second.T + second_bias


def test_a_perceptron_learns_what_no_line_divides_whatever_the_scale() -> None:
    parts = fit_perceptron(circles(4000, 0), torch.zeros(1, 3))
    new = circles(1000, 1)
    assert (answer(new, parts).argmax(dim=1) == new.rows).float().mean() > 0.95


def test_names_of_other_sets_do_not_compete() -> None:
    """Two sets show the same patches, each with words of its own: neither teaches that the other's are wrong."""
    one = circles(4000, 0)
    rows = torch.where(one.rows == 2, 4, one.rows)  # 4 is "anything else"
    other = Patches(one.features, torch.where(rows == 4, 4, rows + 2), torch.ones_like(rows), one.portions)
    both = Patches(*(torch.cat(pair) for pair in zip(one._replace(rows=rows), other, strict=True)))
    allowed = torch.tensor([[0, 0, -torch.inf, -torch.inf, 0], [-torch.inf, -torch.inf, 0, 0, 0]])
    scores = answer(one, fit_perceptron(both, allowed))
    for words in ([0, 1, 4], [2, 3, 4]):
        assert (scores[:, words].argmax(dim=1) == one.rows).float().mean() > 0.95


def test_a_fit_leaves_torchs_random_numbers_alone_and_repeats() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = (fit_perceptron(circles(100, 0), torch.zeros(1, 3), seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first, second)


def test_nothing_seen_is_nothing_remembered() -> None:
    none = Patches(torch.zeros(0, 2).half(), *(torch.zeros(0, dtype=torch.long) for _ in range(3)))
    assert not any(part.any() for part in fit_perceptron(none, torch.zeros(1, 3)))


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
    with pytest.raises(FusionerError, match="it needs similarity"):
        FusionerConfig(memory=3)
