"""Find images that kill the worker process (a crashing decoder, no memory left), so that they can be left out.

When a process dies, its shard is tried again, image by image, and each image is logged before its work begins. An image
at which two such attempts ended becomes an error row. Attempts that ended with the whole run (kill -9) do not count.
"""

import os
from pathlib import Path
from typing import Self

from fusioner.io import cannot_write

MAX_CRASHES = 2


class CrashLog:
    """Log of one process's attempt at a shard, in OUT/.attempts/NUMBER; removed when the attempt succeeds.

    Attributes:
        one_by_one: an earlier attempt crashed, so process image by image.
        poison_images: numbers of the images to leave out.
    """

    def __init__(self, out: Path, shard: int, run: str) -> None:
        """`run` identifies the run of the attempt; raises FusionerError when the log cannot be written."""
        self.path = out / ".attempts" / str(shard)
        try:
            self.path.parent.mkdir(exist_ok=True)
            lines = self.path.read_text("ascii").splitlines() if self.path.exists() else []
            self.one_by_one = lines[:1] == [run]
            self.poison_images = _poison_images(lines[1:]) if self.one_by_one else frozenset()
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if self.one_by_one else os.O_TRUNC)
            self._file = os.open(self.path, mode, 0o666)
            self._write("-" if self.one_by_one else f"{run}\n-")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def begin(self, image: int) -> None:
        """Log that the work on an image begins."""
        if self.one_by_one:
            self._write(str(image))

    def _write(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._file)
        if kind is None:
            self.path.unlink(missing_ok=True)


def _poison_images(lines: list[str]) -> frozenset[int]:
    """Each attempt is a dash and the images begun; the last of them is the one it ended at."""
    attempts = [attempt.split() for attempt in "\n".join(lines).split("-")]
    ends = [int(images[-1]) for images in attempts if images]
    return frozenset(image for image in ends if ends.count(image) >= MAX_CRASHES)
