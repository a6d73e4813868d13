"""How far the work is, on stderr: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
Track = Callable[[Sequence[T], str], Iterable[T]]
SECONDS = 30.0
"""Time between two lines where there is no terminal."""


class Meter:
    """One stretch of work: done of all (None: nobody knows), speed, time left."""

    def __init__(self, bar: "Progress", task: "TaskID", unit: str) -> None:
        self._bar, self._task, self._unit, self._spoken = bar, task, unit, time.monotonic()

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        """`done` is reached, a broken number inside one item; `total` replaces the one known so far."""
        speed = self._bar.tasks[self._task].speed
        text = f"{speed:{'.1f' if speed > 1 else '.2g'}} {self._unit}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, speed=f"{text}  {note}" if note else text)
        if self._bar.console.is_terminal or self._bar.tasks[self._task].finished:
            return
        if time.monotonic() - self._spoken >= SECONDS:
            self._spoken = time.monotonic()
            self._bar.console.print(self._line(text, note), soft_wrap=True, highlight=False, markup=False)

    def _line(self, speed: str, note: str) -> str:
        from fusioner.training.progress import clock

        task = self._bar.tasks[self._task]
        done = f"{task.description} {int(task.completed)}" + (f"/{int(task.total)}" if task.total else "")
        left = "" if task.time_remaining is None else f"left {clock(task.time_remaining)}"
        return "  ".join(part for part in (done, speed, note, left) if part)


class Work:
    """Makes meters; called as `work(items, what)` it passes the items through and moves one."""

    def __init__(self, bar: "Progress", unit: str) -> None:
        self._bar, self._unit = bar, unit

    def __call__(self, items: Sequence[T], what: str) -> Iterator[T]:
        meter = self.meter(what, len(items))
        for done, item in enumerate(items, start=1):
            yield item
            meter(done)

    def meter(self, what: str, total: float | None) -> Meter:
        """A meter labelled `what`."""
        return Meter(self._bar, self._bar.add_task(what, total=total, speed=""), self._unit)


@contextmanager
def progress(unit: str = "images", after: float = 0.0, window: float = 30.0) -> Iterator[Work]:
    """Shows the work done meanwhile; on a terminal no bar is drawn during the first `after` seconds.

    `window`: seconds over which the speed is taken; more than the slowest item takes.
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
    bar = Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=window,
    )
    timer = Timer(after, bar.start)
    timer.start()
    try:
        yield Work(bar, unit)
    finally:
        timer.cancel()
        timer.join()  # a start under way comes before the stop
        bar.stop()
