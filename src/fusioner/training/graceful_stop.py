"""Stopping at the end of a step instead of in its middle."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

_STOPPING = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While open, the first Ctrl-C or SIGTERM is only noted in `number`; a second one acts as it always did.

    Outside the main thread, where Python cannot catch signals, `number` stays 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, signal.Handlers] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {one: signal.signal(one, self._note) for one in _STOPPING}  # pyright: ignore
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}
