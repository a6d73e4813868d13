"""What happened to a shard before: so that an image that kills its process is found, and left out.

Decoders crash and memory runs out; then the process is gone, and the shard is taken up again. A second attempt at a
shard within one run goes image by image and notes each before it begins. An image on which two such attempts ended is
fatal: it becomes an error row. Attempts that ended with the whole run (somebody's kill -9) do not count.
"""

import os
from pathlib import Path
from typing import Self

from fusioner.io import cannot_write

_DEATHS = 2


class Attempt:
    """One process's attempt at one shard, noted in OUT/.attempts/NUMBER until it ends well.

    Attributes:
        careful: the process died in an earlier attempt: go image by image.
        fatal: images (numbers within the input) to leave alone.
    """

    def __init__(self, out: Path, shard: int, run: str) -> None:
        """`run` names the run that this attempt belongs to; FusionerError when it cannot be noted."""
        self.path = out / ".attempts" / str(shard)
        try:
            self.path.parent.mkdir(exist_ok=True)
            before = self.path.read_text("ascii").splitlines() if self.path.exists() else []
            before = before if before[:1] == [run] else []
            self.careful, self.fatal = bool(before), _fatal(before[1:])
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (0 if before else os.O_TRUNC)
            self._file = os.open(self.path, mode, 0o666)
            self._note("-" if before else f"{run}\n-")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def at(self, image: int) -> None:
        """The work on an image begins."""
        if self.careful:
            self._note(str(image))

    def _note(self, line: str) -> None:
        os.write(self._file, f"{line}\n".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._file)
        if kind is None:
            self.path.unlink(missing_ok=True)


def _fatal(lines: list[str]) -> frozenset[int]:
    """A dash begins an attempt; the last image after it is what the attempt ended on."""
    attempts = [one.split() for one in "\n".join(lines).split("-")]
    ends = [int(images[-1]) for images in attempts if images]
    return frozenset(image for image in ends if ends.count(image) >= _DEATHS)
