from itertools import pairwise

import pytest

from fusioner.training.optim import cosine, warmup_cosine


def test_warmup_is_linear_and_cosine_decay_follows() -> None:
    rates = [warmup_cosine(step, 100, 1e-3, 2e-6, 10) for step in range(101)]
    assert rates[0] == 0
    assert rates[9] == rates[10] == 1e-3 == max(rates)
    assert rates[100] == pytest.approx(2e-6)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert warmup_cosine(0, 10, 0.5, 0.1) == 0.5


def test_shorter_than_its_warmup() -> None:
    assert warmup_cosine(0, 1, 1.0, 0.0, 1) == 0
    assert cosine(0, 0, 0.01, 0.4) == pytest.approx(0.01)
