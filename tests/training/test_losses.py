import torch
from hypothesis import given
from hypothesis import strategies as st

from fusioner.training.losses import masked_bce, multiclass_ce


@given(st.integers(0, 1000))
def test_the_parts_of_a_batch_add_up_to_its_loss(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, 4, 6, generator=g)
    labels = torch.randint(-1, 4, (5, 4, 6), generator=g)
    target = (labels[:, None] == torch.arange(1, 4)[None, :, None, None]).float()
    ignore = (labels < 0)[:, None].expand_as(target)
    padded = torch.rand(5, 3, generator=g) < 0.2
    bce_count, count = (~ignore).sum(), (labels >= 0).sum()
    if not count:
        return
    parts = [slice(0, 2), slice(2, 5)]
    total = sum(masked_bce(logits[p], target[p], ignore[p], bce_count) for p in parts)
    assert torch.allclose(torch.as_tensor(total), masked_bce(logits, target, ignore), rtol=1e-5)
    total = sum(multiclass_ce(logits[p], labels[p], padded[p], count) for p in parts)
    assert torch.allclose(torch.as_tensor(total), multiclass_ce(logits, labels, padded), rtol=1e-5)


def test_ignored_pixels_have_neither_loss_nor_gradient() -> None:
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    ignore = torch.tensor([[[[0, 1], [0, 1]]]])
    loss = masked_bce(logits, torch.ones(1, 1, 2, 2), ignore)
    loss.backward()
    assert loss.item() == torch.tensor(2.0).log().item()
    assert logits.grad is not None
    assert (logits.grad[..., 1] == 0).all()
    assert (logits.grad[..., 0] < 0).all()


def test_an_image_without_labelled_pixels_has_zero_loss() -> None:
    everything = torch.ones(1, 1, 2, 2)
    assert masked_bce(torch.randn(1, 1, 2, 2), everything, everything.bool()) == 0
    assert multiclass_ce(torch.randn(1, 2, 2, 2), torch.full((1, 2, 2), -1), torch.zeros(1, 2, dtype=torch.bool)) == 0


def test_ce_loss_is_softmax_over_background_and_prompts() -> None:
    logits = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    probabilities = torch.tensor([0.0, 2.0, -1.0]).softmax(0)
    no_label = torch.zeros(1, 2, dtype=torch.bool)
    for label in range(3):
        loss = multiclass_ce(logits, torch.full((1, 1, 1), label), no_label)
        assert torch.allclose(loss, -probabilities[label].log())


def test_padded_labels_have_no_share_of_the_softmax() -> None:
    logits = torch.tensor([2.0, 50.0]).view(1, 2, 1, 1)
    loss = multiclass_ce(logits, torch.ones(1, 1, 1, dtype=torch.long), torch.tensor([[False, True]]))
    assert torch.allclose(loss, -torch.tensor([0.0, 2.0]).softmax(0)[1].log())
