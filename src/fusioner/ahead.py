"""Work done by threads while the caller is busy with something else."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
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
