"""Training progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_INTERVAL = 15.0
"""Seconds between two lines without a terminal."""


class TrainingProgress:
    """Loss, mIoU, images per second and time left."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  mIoU {task.fields[miou]:.1f}  {task.fields[speed]:.1f} images/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self.console) if self.console.is_terminal else None
        self._total, self._first, self._start_time, self._line_time = 0, 0, 0.0, 0.0

    def begin(self, step: int, total: int) -> None:
        """Show a run of `total` steps that starts at `step`."""
        self._total, self._first = total, step
        self._start_time = self._line_time = time.monotonic()
        if self._bar:
            self._bar.start()
            self._bar.add_task("", total=total, completed=step, loss=0.0, miou=0.0, speed=0.0)

    def step(self, step: int, loss: float, miou: float, speed: float) -> None:
        """Show that `step` steps are done; speed in images per second."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=loss, miou=miou, speed=speed)
        elif time.monotonic() - self._line_time >= LINE_INTERVAL or step == self._total:
            self._line_time = time.monotonic()
            left = (self._line_time - self._start_time) / max(1, step - self._first) * (self._total - step)
            values = f"loss {loss:.4f}  mIoU {miou:.1f}  {speed:.1f} images/s  left {format_duration(left)}"
            self.say(f"step {step}/{self._total}  {values}")

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True, highlight=False, markup=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()


def format_duration(seconds: float) -> str:
    """Format as `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
