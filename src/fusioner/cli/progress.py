"""A progress bar on stderr: done of all, speed, time left."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TypeVar

T = TypeVar("T")
Track = Callable[[Sequence[T], str], Iterable[T]]


@contextmanager
def progress(unit: str = "images", after: float = 0.0) -> Iterator[Track]:
    """Gives `track(items, what)`, which passes the items through and moves a bar labelled `what`.

    The bar is for eyes: none is drawn where stderr is no terminal, nor during the first `after` seconds.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Lines printed meanwhile go above the bar, but not off a stdout that leads elsewhere.
    bar = Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=sys.stdout.isatty())
    timer = Timer(after, bar.start)

    def track(items: Sequence[T], what: str) -> Iterator[T]:
        task = bar.add_task(what, total=len(items), speed="")
        for item in items:
            yield item
            speed = bar.tasks[task].speed
            bar.update(task, advance=1, speed=f"{speed:.1f} {unit}/s" if speed else "")

    timer.start()
    try:
        yield track
    finally:
        timer.cancel()
        timer.join()  # a start under way comes before the stop
        bar.stop()
