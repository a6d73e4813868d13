"""The pictures in a folder, one folder's names in memory at a time."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from fusioner.errors import FusionerError
from fusioner.image import image_suffixes


def walk_pictures(
    folder: Path,
    out: Path | None = None,
    recursive: bool = True,
    complain: Callable[[FusionerError], None] | None = None,
) -> Iterator[Path]:
    """Pictures of a folder in a fixed order, with `recursive` also of those inside, but hidden ones and `out`.

    Links to folders are not followed. A folder that cannot be read is complained of, or, with nobody to complain to,
    raised as FusionerError.
    """

    def unreadable(error: OSError) -> None:
        told = FusionerError(f"cannot read folder {error.filename}: {error.strerror or error}")
        if complain is None:
            raise told
        complain(told)

    suffixes, results = image_suffixes(), out and os.path.realpath(out)
    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        folders[:] = sorted(one for one in folders if one[0] != "." and os.path.realpath(here / one) != results)
        for path in (here / name for name in sorted(files)):
            if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
                yield path
        if not recursive:
            break
