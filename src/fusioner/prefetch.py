"""Run functions and iterators in threads ahead of their consumer."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def map_ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[Iterator[R]]:
    """Yield the iterator `map(function, items)`, in order, computed by `workers` threads up to `workers` results ahead.

    Items are taken in the caller's thread, one per result requested while threads are free, so at most `workers` + 1
    are held. With 0 workers everything runs in the caller's thread. Exceptions of `function` are raised in place of its
    result. Leaving the context waits for the items already taken.
    """
    if not workers:
        yield map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        yield _results(pool, function, items, workers)
    finally:
        pool.shutdown(wait=True)


def _results(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], limit: int) -> Iterator[R]:
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        while pending and (len(pending) > limit or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def taken_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the same items (none of them None) in order, with up to `depth` of them computed ahead by a thread.

    An exception of the iterator is raised in place of its item. Closing waits for the item being computed.
    """
    if depth == 0:
        yield from items
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        pending: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def timed(items: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Yield each item with the seconds spent waiting for it."""
    start = time.monotonic()
    for item in items:
        yield item, time.monotonic() - start
        start = time.monotonic()
