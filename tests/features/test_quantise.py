"""Eight bits: never off by more than half a step of the token's own scale."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusioner.features.quantise import Rounding, quantise, restore, token_errors


@given(st.integers(0, 10_000), st.integers(1, 40), st.floats(-30, 30), st.booleans())
def test_no_component_is_off_by_more_than_half_a_step(seed: int, width: int, size: float, peaked: bool):
    tokens = torch.randn(2, width, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2.0**size
    if peaked:  # one component far above the others
        tokens[:, 0] *= 1000
    stored = quantise(tokens)
    assert stored.values.dtype == torch.int8
    assert stored.values.abs().max() <= 127  # -128 stays unused: the scale is the same in both directions
    again = restore(stored)
    step = tokens.abs().amax(dim=1, keepdim=True) / 127
    assert ((again - tokens).abs() <= step / 2 * (1 + 1e-4)).all()
    # So a token is off by at most half a step in every direction: sqrt(width) / 254 of its largest component.
    assert (token_errors(tokens, again) <= (width**0.5 / 254) * (1 + 1e-4)).all()


@given(st.integers(0, 1000))
def test_what_is_already_on_the_steps_comes_back_exactly(seed: int):
    steps = torch.randint(-127, 128, (5, 2, 2), generator=torch.Generator().manual_seed(seed)).float()
    steps[0] = 127
    tokens = steps * 0.25
    assert torch.equal(restore(quantise(tokens)), tokens)


def test_zero_and_tiny_tokens_stay_finite():
    tokens = torch.tensor([0.0, 1e-38, -1e-40, 1e-45]).view(1, 1, 2, 2).repeat(1, 3, 1, 1)
    again = restore(quantise(tokens))
    assert again.isfinite().all()
    assert again[..., 0, 0].eq(0).all()


def test_restoring_into_half_precision_and_into_float():
    stored = quantise(torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(1)))
    whole = restore(stored)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        out = torch.empty(6, 3, 3, dtype=dtype)
        assert restore(stored, out=out).data_ptr() == out.data_ptr()
        assert torch.equal(out, whole.to(dtype))


def test_errors_add_up():
    total, parts = Rounding(), [torch.tensor([0.1, 0.3]), torch.tensor([[0.2]])]
    for part in parts:
        one = Rounding()
        one.add(part)
        total.merge(one)
    assert (total.tokens, round(total.mean, 6), round(total.worst, 6)) == (3, 0.2, 0.3)
    assert Rounding().mean == 0
