"""Test that results are computed ahead in order, and no more of them than allowed."""

import threading

import pytest

from fusioner.prefetch import map_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_in_order(workers: int) -> None:
    with map_ahead(lambda x: x * x, range(50), workers) as squares:
        assert list(squares) == [x * x for x in range(50)]


def test_prefetching_is_bounded() -> None:
    started, taken, third = [], [], threading.Event()

    def work(item: int) -> int:
        started.append(item)
        if len(started) == 3:
            third.set()
        return item

    def items() -> "object":
        for item in range(100):
            taken.append(item)
            yield item

    free = threading.Event()
    with map_ahead(lambda item: (free.wait(), work(item))[1], items(), 2) as results:  # type: ignore[arg-type]
        threading.Timer(0, free.set).start()
        assert next(results) == 0
        assert len(taken) <= 3
        assert [next(results), next(results)] == [1, 2]
        assert third.wait(5)
        assert len(taken) <= 5


def test_an_error_is_raised_in_place_of_its_result() -> None:
    with map_ahead(lambda x: 6 // x, [3, 2, 0, 1], 2) as results:
        assert [next(results), next(results)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_leaving_early_waits_for_running_calls() -> None:
    started, ended = threading.Event(), []

    def work(item: int) -> int:
        started.set()
        ended.append(item)
        return item

    with map_ahead(work, range(100), 2) as results:
        next(results)
        assert started.wait(5)
    assert 1 <= len(ended) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
