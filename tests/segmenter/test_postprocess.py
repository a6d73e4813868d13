"""Compare post-processing in NumPy with torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner.postprocess import decide, decide_logits, iter_probabilities, sigmoid, upsample


def numbers(*shape: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def resized(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=60)
def test_decision_equals_torchs(
    shape: tuple[int, int, int], size: tuple[int, int], threshold: float, background: bool, seed: int
) -> None:
    logits = numbers(*shape, seed=seed)
    found, best = decide_logits(logits.numpy(), size, threshold, background)
    planes = torch.cat([torch.full((1, *size), threshold if background else -1.0), resized(logits, size).sigmoid()])
    expected, index = planes.max(dim=0)
    assert np.abs(best - expected.numpy()).max() < 1e-5
    untied = (planes.topk(2, dim=0).values.diff(dim=0)[0] < -1e-4).numpy()
    assert np.array_equal(index.numpy()[untied], found[untied])
    streamed = np.concatenate(list(iter_probabilities(logits.numpy(), size)))
    assert np.abs(streamed - planes[1:].numpy()).max() < 1e-5
    assert np.abs(upsample(logits.numpy(), size) - resized(logits, size).numpy()).max() < 1e-4


def test_ties_go_to_the_first() -> None:
    p = np.full((3, 2, 2), 0.5, np.float32)
    assert decide(p, 0.5).max() == 0
    assert decide(p, 0.4).min() == decide(p, 0.4).max() == 1


@pytest.mark.parametrize("values", [[-1e4, -90.0, 0.0, 90.0, 1e4]])
def test_sigmoid_of_large_numbers(values: list[float]) -> None:
    expected = torch.tensor(values).sigmoid().numpy()
    assert np.allclose(sigmoid(np.array(values, np.float32)), expected, atol=1e-7)
