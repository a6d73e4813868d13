"""Progress on stderr: a bar on a terminal, elsewhere a line every half minute."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

T = TypeVar("T")
Track: TypeAlias = Callable[[Sequence[Any], str], Iterable[Any]]
"""Yields the given items while advancing a progress bar of the given label."""
SECONDS = 30.0
"""Time between two lines where there is no terminal."""


def no_progress(items: Sequence[T], what: str) -> Sequence[T]:
    """Return the items: a `Track` that shows nothing."""
    return items


class Task:
    """A task with its own bar; call it as `task(done, total, note)`, where a fraction of `done` lies within an item."""

    def __init__(self, display: Progress, task: TaskID, unit: str) -> None:
        self._display, self._task, self._unit, self._last_line = display, task, unit, time.monotonic()

    def __call__(self, done: float, total: float | None = None, note: str = "") -> None:
        speed = self._display.tasks[self._task].speed
        text = f"{speed:{'.1f' if speed > 1 else '.2g'}} {self._unit}/s" if speed and self._unit else ""
        self._display.update(self._task, completed=done, total=total, speed=f"{text}  {note}" if note else text)
        if self._display.console.is_terminal or self._display.tasks[self._task].finished:
            return
        if time.monotonic() - self._last_line >= SECONDS:
            self._last_line = time.monotonic()
            self._display.console.print(self._line(text, note), soft_wrap=True, highlight=False, markup=False)

    def _line(self, speed: str, note: str) -> str:
        task = self._display.tasks[self._task]
        done = f"{task.description} {int(task.completed)}" + (f"/{int(task.total)}" if task.total else "")
        left = "" if task.time_remaining is None else f"left {format_duration(task.time_remaining)}"
        return "  ".join(part for part in (done, speed, note, left) if part)


class ProgressBar:
    """The bars of a command; call it as `bar(items, what)` to iterate over items with a bar of their own."""

    def __init__(self, display: Progress, unit: str) -> None:
        self._display, self._unit = display, unit

    def __call__(self, items: Sequence[T], what: str) -> Iterator[T]:
        task = self.task(what, len(items))
        for done, item in enumerate(items, start=1):
            yield item
            task(done)

    def task(self, what: str, total: float | None, done: int = 0, unit: str | None = None) -> Task:
        """Add a task described by `what`; the total may be unknown (None). With unit "" no speed is shown."""
        task = self._display.add_task(what, total=total, completed=done, speed="")
        return Task(self._display, task, self._unit if unit is None else unit)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._display.console.print(text, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress(unit: str = "images", after: float = 0.0, window: float = 30.0) -> Iterator[ProgressBar]:
    """Show progress while the context is open, on a terminal `after` seconds.

    The speed is averaged over `window` seconds, which should be longer than the slowest item.
    """
    # The commands of a notebook have a pseudo-terminal, but notebooks cannot redraw several lines.
    console = Console(stderr=True, force_terminal=False if "JPY_PARENT_PID" in os.environ else None)
    # Printed lines appear above the bar, unless stdout is redirected.
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=window,
    )
    timer = Timer(after, display.start)
    timer.start()
    try:
        yield ProgressBar(display, unit)
    finally:
        timer.cancel()
        timer.join()  # a start in progress must come before the stop
        display.stop()


def format_duration(seconds: float) -> str:
    """Format as `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
