"""Test the decision: thresholds, ties, order of labels, and equality of banded and whole computation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusioner.postprocess as postprocess
from fusioner.errors import FusionerError


def decide(p: Tensor, threshold: float = 0.5, background: bool = True) -> Tensor:
    return torch.from_numpy(postprocess.decide(p.numpy(), threshold, background))


def decide_logits(logits: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    numbers, best = postprocess.decide_logits(logits.numpy(), *options)
    return torch.from_numpy(numbers), torch.from_numpy(best)


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(postprocess.upsample(logits.numpy(), size))


def planes(low: float = 0.0, high: float = 1.0) -> st.SearchStrategy[Tensor]:
    """Draw (k, h, w) with many equal values, so that ties are common."""
    shape = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
    seed = st.integers(0, 2**31)

    def draw(drawn: tuple[tuple[int, int, int], int, int]) -> Tensor:
        (k, h, w), number, steps = drawn
        values = torch.randint(0, steps + 1, (k, h, w), generator=torch.Generator().manual_seed(number))
        return low + (high - low) * values / steps

    return st.tuples(shape, seed, st.sampled_from([1, 4, 1000])).map(draw)


@given(planes(), st.floats(0, 1, width=32))
def test_is_the_argmax_with_the_threshold_in_front(p: Tensor, threshold: float) -> None:
    stacked = torch.cat([torch.full_like(p[:1], threshold), p]).numpy()
    assert np.array_equal(decide(p, threshold).numpy(), stacked.argmax(0))
    assert np.array_equal(decide(p, threshold, background=False).numpy(), p.numpy().argmax(0) + 1)


@given(planes(), st.floats(0, 1), st.booleans(), st.randoms())
def test_permuting_labels_permutes_the_map(p: Tensor, threshold: float, background: bool, random: object) -> None:
    p = p + torch.linspace(0, 1e-3, len(p))[:, None, None]  # avoid ties, which depend on the order
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(hash(random) % 2**31))
    before, after = decide(p, threshold, background), decide(p[order], threshold, background)
    names = torch.cat([torch.zeros(1, dtype=torch.int64), order + 1])
    assert torch.equal(names[after.long()], before.long())


@given(planes())
def test_threshold_one_is_all_background_and_no_background_never_zero(p: Tensor) -> None:
    assert not decide(p, 1.0).any()
    assert decide(p, 0.0, background=False).min() >= 1
    assert torch.equal(decide(p, 0.0) == 0, (p == 0).all(0))


def test_ties_go_to_the_first() -> None:
    p = torch.full((3, 1, 1), 0.5)
    assert decide(p, 0.5).item() == 0
    assert decide(p, 0.499).item() == 1
    assert decide(p, 0.9, background=False).item() == 1


@pytest.mark.parametrize("threshold", [-0.01, 1.01, math.nan, math.inf])
def test_a_threshold_outside_zero_to_one_is_refused(threshold: float) -> None:
    with pytest.raises(FusionerError, match="a probability between 0 and 1, not"):
        decide(torch.zeros(1, 1, 1), threshold)
    with pytest.raises(FusionerError, match="a probability between 0 and 1, not"):
        decide_logits(torch.zeros(1, 1, 1), (1, 1), threshold)


@given(
    planes(-14.0, 14.0),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.booleans(),
    st.sampled_from([1, 20, 10**6]),
)
@settings(max_examples=100)
def test_streaming_decides_as_all_at_once(
    logits: Tensor, size: tuple[int, int], threshold: float, background: bool, chunk: int
) -> None:
    default = postprocess.CHUNK_SIZE, postprocess.BAND_SIZE
    postprocess.CHUNK_SIZE = postprocess.BAND_SIZE = chunk
    try:
        numbers, best = decide_logits(logits, size, threshold, background)
        streamed = torch.from_numpy(np.concatenate(list(postprocess.iter_probabilities(logits.numpy(), size))))
    finally:
        postprocess.CHUNK_SIZE, postprocess.BAND_SIZE = default
    p = upsample(logits, size).sigmoid()  # the last bit depends on the number of values per call
    assert torch.allclose(streamed, p, rtol=0, atol=1e-6)
    candidates = torch.cat([torch.full_like(p[:1], threshold if background else -1.0), p])
    assert torch.allclose(candidates.gather(0, numbers[None].long())[0], candidates.amax(0), rtol=0, atol=1e-6)
    assert torch.allclose(best, candidates.amax(0), rtol=0, atol=1e-6)
    untied = candidates.topk(2, dim=0).values.diff(dim=0)[0] < -1e-5
    assert torch.equal(numbers[untied], decide(p, threshold, background)[untied])


def test_labels_that_win_nowhere_are_not_upsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only labels that may exceed the others somewhere are upsampled, here few of a hundred."""
    logits = torch.randn(100, 12, 10) - 5
    logits[17], logits[60, :6] = 3.0, 9.0
    upsampled = []
    whole = postprocess._upsample_rows
    monkeypatch.setattr(postprocess, "_upsample_rows", lambda *a: upsampled.append(len(a[1])) or whole(*a))
    for background in (True, False):
        numbers, _ = decide_logits(logits, (50, 60), 0.5, background)
        assert numbers.unique().tolist() == [18, 61]
    assert sum(upsampled) == 4


def test_upsampling_returns_a_new_tensor() -> None:
    logits = torch.randn(2, 3, 4)
    same = upsample(logits, (3, 4))
    assert torch.equal(same, logits)
    assert same.data_ptr() != logits.data_ptr()
    assert upsample(logits, (6, 2)).shape == (2, 6, 2)
