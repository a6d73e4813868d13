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
            TextColumn("{task.fields[values]}"),
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
            self._bar.add_task("", total=total, completed=step, values="")

    def step(self, step: int, loss: float, miou: float, val_miou: float | None, speed: float) -> None:
        """Show that `step` steps are done.

        Args:
            miou: running on training images; val_miou: latest on held-out images, None before the first (per cent).
            speed: images per second.
        """
        held_out = "" if val_miou is None else f", held-out {val_miou:.1f}"
        values = f"loss {loss:.4f}  mIoU training {miou:.1f}{held_out}  {speed:.1f} images/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, values=values)
        elif time.monotonic() - self._line_time >= LINE_INTERVAL or step == self._total:
            self._line_time = time.monotonic()
            left = (self._line_time - self._start_time) / max(1, step - self._first) * (self._total - step)
            self.say(f"step {step}/{self._total}  {values}  left {format_duration(left)}")

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
