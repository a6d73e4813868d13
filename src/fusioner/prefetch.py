"""Work done by threads while the caller is busy with something else."""

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
    """Gives `map(function, items)`, in the items' order, with up to `workers` results made ahead by as many threads.

    Items are taken in the caller's thread, one whenever a result is asked for and the threads have room, so no more
    than `workers` + 1 are held. 0 workers: everything happens in the caller's thread. What `function` raises comes out
    where its result would have come. Leaving the context waits for the items already taken.
    """
    if not workers:
        yield map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="ahead")
    try:
        yield _results(pool, function, items, workers)
    finally:
        pool.shutdown(wait=True)


def _results(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], room: int) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        while waiting and (len(waiting) > room or waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def taken_ahead(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """The same items, none of them None, in the same order, up to `depth` made by a thread while the caller computes.

    An error met on the way is raised where its item would have come. Closing waits for the item being made.
    """
    if depth == 0:
        yield from items
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        waiting: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(depth))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def timed(items: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Each item with the seconds it was waited for."""
    begun = time.monotonic()
    for item in items:
        yield item, time.monotonic() - begun
        begun = time.monotonic()
