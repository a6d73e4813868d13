"""A progress bar on stderr: done of all, speed, time left."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Track = Callable[[Sequence[T], str], Iterable[T]]


@contextmanager
def progress(unit: str = "images") -> Iterator[Track]:
    """Gives `track(items, what)`, which passes the items through and moves a bar labelled `what`."""
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
    with Progress(*columns, console=Console(stderr=True)) as bar:

        def track(items: Sequence[T], what: str) -> Iterator[T]:
            task = bar.add_task(what, total=len(items), speed="")
            for item in items:
                yield item
                speed = bar.tasks[task].speed
                bar.update(task, advance=1, speed=f"{speed:.1f} {unit}/s" if speed else "")

        yield track
