"""Writing files so that a reader never meets half of one: write beside, then rename."""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusioner.errors import FusionerError

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
_FULL_BELOW = 2**16  # bytes left on a device that count as none: writers other than Python's hide the errno


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` (same suffix) to write to; on success it is flushed to disk and renamed to `path`.

    Missing parent folders are made. When anything goes wrong `path` is left as it was and nothing is left beside it.

    Raises:
        FusionerError: the system refuses to write: no space, no permission, a file in the folder's place.
    """
    path = Path(path)
    beside = path.with_name(f".part-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
        yield beside
        beside.chmod(mode)  # safetensors leaves its files to their owner alone
        _flush(beside)
        os.replace(beside, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except FusionerError:
        raise
    except Exception as error:  # safetensors and torch wrap the system's errors in their own
        number = _hidden_errno(error, path.parent)
        if number is None:
            raise
        raise cannot_write(path, OSError(number, os.strerror(number))) from error
    finally:
        with suppress(OSError):  # where the folder itself could not be made
            beside.unlink(missing_ok=True)


def writable_folder(path: str | Path) -> Path:
    """Make the folder where it is missing and prove, by writing a byte, that files can be made in it.

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
    """The sentence for a failed write of `path`."""
    return FusionerError(f"cannot write {path}: {_REASONS.get(error.errno or 0, error.strerror or str(error))}")


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, where delayed errors (quota, network disks) come to light."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hidden_errno(error: Exception, folder: Path) -> int | None:
    """The system's error number behind another library's exception, where its text or the full device tells it."""
    named = re.search(r"os error (\d+)", str(error))  # how safetensors (Rust) says it
    if named:
        return int(named[1])
    try:
        return errno.ENOSPC if shutil.disk_usage(folder).free < _FULL_BELOW else None
    except OSError:
        return None
