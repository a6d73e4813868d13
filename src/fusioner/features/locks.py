"""Who may do what to a cache folder. The system drops these locks when their holder dies, however it dies.

Where the system has no such locks (Windows) everything is allowed: two builders may then encode the same image twice,
which costs time but breaks nothing.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from fusioner.errors import FusionerError
from fusioner.io import cannot_write

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None

_PATIENCE = 5.0  # seconds; tidying up holds a folder for milliseconds only


class Presence:
    """Whole-folder lock: any number of writers together, or one that changes what is there, alone.

    Raises:
        FusionerError: the other kind is at work, or the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle = _open(folder / ".lock")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def alone(self) -> bool:
        """Become the only one; False where others are at work."""
        return self._take(exclusive=True)

    def together(self) -> Self:
        """Become one of several writers."""
        self._insist(exclusive=False, busy="is being repaired or pruned by another process")
        return self

    def require_alone(self) -> Self:
        """Become the only one, or complain."""
        self._insist(exclusive=True, busy="is being written to by another process")
        return self

    def _insist(self, exclusive: bool, busy: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not self._take(exclusive):
            if time.monotonic() > until:
                raise FusionerError(f"the feature cache {self.folder} {busy}: wait for it to end")
            time.sleep(0.02)

    def _take(self, exclusive: bool) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Claims:
    """Per-image locks, so that two builders share the work: byte ranges of one file, at places told by the digests.

    They hold between processes, not between threads of one.
    """

    def __init__(self, folder: Path) -> None:
        self._handle = _open(folder / ".claims")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def claim(self, digest: str) -> bool:
        """Whether the image is ours now."""
        if fcntl is None:
            return True
        with suppress(BlockingIOError, PermissionError):  # POSIX allows either for "somebody else has it"
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(digest))
            return True
        return False

    def release(self, digest: str) -> None:
        """Give it back."""
        if fcntl is not None:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, _place(digest))


def _place(digest: str) -> int:
    return int(digest[:15], 16)  # below 2**60: offsets have 63 bits


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
