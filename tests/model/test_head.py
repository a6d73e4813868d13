"""Test that the head equals one on resized features, and the gradients of wide convolutions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusioner.model.cpu_kernels import MIN_CHANNELS, convolve
from fusioner.model.head import cosine_logits, neighbour_products


def resized_first(features: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the logits of resized features in double precision."""
    pixels = F.normalize(F.interpolate(features.double(), size=size, mode="bilinear", align_corners=False), dim=1)
    return torch.einsum("bchw,bkc->bkhw", pixels, F.normalize(classes.double(), dim=-1)) / 0.07


@given(
    b=st.integers(1, 3), c=st.sampled_from([2, 40, 600]), h=st.integers(1, 9), w=st.integers(1, 30),
    tall=st.integers(1, 24), wide=st.integers(1, 64), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_logits_and_gradients_equal_those_of_resized_features(
    b: int, c: int, h: int, w: int, tall: int, wide: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # The offset prevents neighbours from being opposite.
    features = (torch.randn(b, c, h, w, generator=generator) + 3).requires_grad_()
    classes = torch.randn(b, 2, c, generator=generator).requires_grad_()
    expected = resized_first(features, classes, (tall, wide))
    logits = cosine_logits(features, classes, 0.07, (tall, wide))
    assert (logits - expected).abs().max() < 1e-3
    pull = torch.randn(expected.shape, generator=generator)
    inputs = (features, classes)
    for one, other in zip(
        torch.autograd.grad(logits, inputs, pull), torch.autograd.grad(expected, inputs, pull.double()), strict=True
    ):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max()


def test_opposite_neighbours_and_features_of_zero_stay_finite() -> None:
    features = torch.tensor([[1.0, -1.0], [0.0, 0.0]]).view(1, 1, 2, 2).expand(1, 4, 2, 2).clone().requires_grad_()
    logits = cosine_logits(features, torch.ones(1, 1, 4), 0.07, (7, 7))
    logits.square().sum().backward()
    assert logits.isfinite().all()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert logits.abs().max() < 1 / 0.07 + 1e-3


def test_blockwise_products_equal_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(3, 8, 11, 7)
    whole = neighbour_products(features)
    monkeypatch.setattr("fusioner.model.cpu_kernels.BLOCK_SIZE", 100)  # a row at a time
    torch.testing.assert_close(neighbour_products(features), whole)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(neighbour_products(features), whole)


@pytest.mark.parametrize("kernel", [1, 3])
def test_wide_convolutions_have_torchs_gradients(kernel: int) -> None:
    torch.manual_seed(0)
    conv: Any = nn.Conv2d(MIN_CHANNELS, MIN_CHANNELS + 3, kernel, padding=kernel // 2)
    conv.to(memory_format=torch.channels_last)
    x = torch.randn(2, MIN_CHANNELS, 5, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = convolve(conv, x), conv(x)
    pull, inputs = torch.randn_like(theirs), (x, conv.weight, conv.bias)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, pull), torch.autograd.grad(theirs, inputs, pull), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
