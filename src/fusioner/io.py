"""Atomic file writes (temporary file + rename), advisory file locks, and finding files by names of other systems."""

import errno
import math
import os
import re
import secrets
import shutil
import stat
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Self, TypeVar

from fusioner.errors import FusionerError

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows)
    fcntl = None

T = TypeVar("T")

_REASONS = {
    errno.ENOSPC: "there is no space left on the device: free some or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EACCES: "permission denied: choose a folder you may write to",
    errno.EPERM: "permission denied: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EEXIST: "a part of its path is a file, not a folder",
    errno.EISDIR: "there is a folder of that name",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}
MARK = b"usioner"
"""Part of every file that may be replaced by a later one of the same name; see `check_replaceable`."""
_MARKED = 2**20  # bytes at the beginning and at the end of a file that are searched for it
_FULL_BELOW = 2**16  # free bytes below which a device counts as full: libraries that hide the errno leave no other hint


@contextmanager
def atomic_write(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder (same suffix); on success flush it to disk and rename it to `path`.

    Without `flush` the file may be incomplete after a power cut (not after `kill -9`).
    Missing parent folders are made. On an error `path` is left as it was and the temporary file is removed.

    Raises:
        FusionerError: the file cannot be written (no space, no permission, a file in the folder's place), or another
            file that the body reads cannot be read.
    """
    path = Path(path)
    temporary = path.with_name(f".part-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors restricts its files to their owner
        if flush:
            _flush(temporary)
        os.replace(temporary, path)
    except FusionerError:
        raise
    except Exception as error:
        raise _explain(error, path, temporary) from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made
            temporary.unlink(missing_ok=True)


def check_replaceable(path: Path, mark: bytes = MARK) -> None:
    """Raise a FusionerError if there is a file at `path` that does not contain `mark`: another program wrote it."""
    try:
        with path.open("rb") as file:
            head = file.read(_MARKED)
            file.seek(max(0, path.stat().st_size - _MARKED))
            if mark in head or mark in file.read():
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot_write(path, error) from error
    raise FusionerError(f"{path} exists and was not written by fusioner: choose another name or folder")


def writable_folder(path: str | Path) -> Path:
    """Make the folder if it is missing and check, by writing a byte, that files can be created in it.

    Raises:
        FusionerError: they cannot.
    """
    path = Path(path)
    probe = path / f".part-{secrets.token_hex(4)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b".")
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return path


def cannot_write(path: Path, error: OSError) -> FusionerError:
    """Return the error for a failed write of `path`."""
    return FusionerError(f"cannot write {path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}")


def cannot_read(path: Path | str, error: OSError) -> FusionerError:
    """Return the error for a failed read of `path`."""
    return FusionerError(f"cannot read {path}: {error.strerror or error}")


def parse_file(path: str | Path, parse: Callable[[str], T], what: str = "") -> T:
    """Parse a UTF-8 text file, with or without a byte-order mark.

    Raises:
        FusionerError: it cannot be read, or `parse` raises a ValueError: `cannot read WHAT PATH: reason`.
    """
    try:
        return parse(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        if isinstance(error, UnicodeDecodeError):
            reason = "it is not UTF-8 text: save it as UTF-8"
        raise FusionerError(f"cannot read {what}{path}: {reason}") from error


def find_path(name: str | Path, folder: str | Path = "") -> Path | None:
    """Return the file or folder of a name that another system or tool may have written; None if there is none.

    An exact match wins. Otherwise backslashes count as slashes, and case and Unicode form do not count where only one
    entry of a folder matches.
    """
    path = Path(folder, name)
    try:
        if path.exists():
            return path
        path = Path(folder)
        for part in PurePosixPath(str(name).replace("\\", "/")).parts:
            if not (path / part).exists():
                (part,) = _entries(path, path.stat().st_mtime_ns)[name_key(part)]
            path /= part
    except (OSError, ValueError, KeyError):  # no such folder, a name that none can have, several entries, none
        return None
    return path


def name_key(name: str) -> str:
    """Return what the names of a file on different systems have in common: neither case nor Unicode form."""
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=64)
def _entries(folder: Path, changed: int) -> dict[str, list[str]]:
    """Return the names in a folder by `name_key`; `changed` is its modification time."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(name_key(name), []).append(name)
    return found


class FileLocks:
    """Exclusive locks by number, held by one process at a time and released by the system when that process ends.

    They are POSIX locks on single bytes of the file `path`; threads of one process share them.
    On systems and network file systems without such locks every lock is granted.
    """

    def __init__(self, path: Path) -> None:
        """Raises FusionerError when the file cannot be opened for writing."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def acquire(self, number: int) -> bool:
        """Take a lock (0 to 2**62) if no other process holds it; return whether this process holds it now."""
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def release(self, number: int) -> None:
        """Release a lock."""
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, number)


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, where delayed errors (quota, network disks) surface."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _explain(error: Exception, path: Path, temporary: Path) -> Exception:
    """Return the FusionerError for an error inside `atomic_write`, or `error` itself when it is no failed write."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and number and error.filename is not None:
        ours = {str(place) for place in (path, temporary, *path.parents)}
        return cannot_write(path, error) if str(error.filename) in ours else cannot_read(error.filename, error)
    number = number or _hidden_errno(error, path.parent)  # safetensors and torch wrap the system's errors
    return cannot_write(path, OSError(number, os.strerror(number))) if number else error


def _hidden_errno(error: Exception, folder: Path) -> int | None:
    """Return the system's error number behind another library's exception, if its text or a full device reveals it."""
    match = re.search(r"os error (\d+)", str(error))  # the wording of safetensors (Rust)
    if match:
        return int(match[1])
    try:
        return errno.ENOSPC if shutil.disk_usage(folder).free < _FULL_BELOW else None
    except OSError:
        return None


def default_cache_folder() -> Path:
    """Return the default cache folder: `$FUSIONER_CACHE`, otherwise the platform's folder for caches."""
    if named := os.environ.get("FUSIONER_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fusioner" / "features"


def format_bytes(size: float) -> str:
    """Format a number of bytes, as `1.5 GB`."""
    power = min(int(math.log10(max(size, 1)) // 3), 4)
    return f"{size / 1000**power:.{0 if power == 0 else 1}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
