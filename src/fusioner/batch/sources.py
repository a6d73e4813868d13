"""Inputs of a batch run: a folder, a glob, a list of files, Parquet files or tar archives, read in pieces.

At most one folder's names, one Parquet batch or one picture's bytes are in memory. If a container breaks off, the rest
of the pictures counted carry the reason in place of a content.
"""

import os
import tarfile
from array import array
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from fusioner.errors import FusionerError
from fusioner.image import image_suffixes, list_images, unsupported_kind
from fusioner.io import cannot_read, find_path

SourceKind = Literal["files", "parquet", "tar"]
OnLeftOut = Callable[[str], None]
"""Called with the kind of each picture of an unsupported format, see `image.unsupported_kind`."""
COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content", "path", "image_path", "file_name")
"""Default names of the picture column of a Parquet file."""
NAME_COLUMNS = ("__key__", "key", "id", "image_id", "name", "file_name", "filename", "path", "url")
MAX_BYTES = 2**30  # of one picture's file inside an archive
_LIST_HEAD = 2**16  # bytes of a list that are searched for a zero, which no path contains
_COMPRESSED = (".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")


class Picture(NamedTuple):
    """An image of the input: its name, and the bytes or the path of its file, or the error of reading it."""

    name: str
    content: bytes | Path | FusionerError


@dataclass(frozen=True)
class Source:
    """The input of a run, as `text` of the user; names are relative to the folder `base`.

    `column` is the picture column of Parquet files; None: the first of `COLUMNS` that exists.
    """

    kind: SourceKind
    base: Path
    text: str
    column: str | None = None

    def names(self, out: Path, on_left_out: OnLeftOut = lambda kind: None) -> Iterator[str]:
        """Yield the names of the image files or containers in a fixed order, except those inside `out`."""
        path = Path(self.text).expanduser()
        if path.is_dir():
            if self.kind == "files":
                paths = list_images(path, out, on_left_out=on_left_out)
            else:
                paths = sorted(file for file in path.iterdir() if file.suffix.lower() == f".{self.kind}")
            yield from (str(file.relative_to(path)) for file in paths)
        elif not path.exists():
            yield from sorted(name for name in glob(str(path), recursive=True) if not Path(name).is_dir())
        elif self.kind != "files" or path.suffix.lower() in image_suffixes():
            yield path.name
        else:
            yield from _read_list(path)

    def identity(self, name: str) -> str:
        """Return the string that the hash of the input covers: the name, and the size of a container."""
        return name if self.kind == "files" else f"{name} {_size(self.base / name)}"

    def cut(self, name: str, size: int, on_left_out: OnLeftOut = lambda kind: None) -> list[tuple[int, int]]:
        """Cut a container into (start, count) of at most `size` images, where start is a row or a byte.

        An unreadable container counts one image, which `read` turns into an error.
        """
        path = self.base / name
        if self.kind == "tar":
            return _cut_tar(path, size, on_left_out)
        try:
            rows = _open_parquet(path, self.column)[0].metadata.num_rows
        except OSError:
            rows = 1
        return [(start, min(size, rows - start)) for start in range(0, rows, size)]

    def read(self, name: str, start: int, count: int) -> Iterator[Picture]:
        """Yield exactly `count` pictures of a container."""
        read, done = _read_tar if self.kind == "tar" else _read_parquet, 0
        reason = "it holds fewer pictures than when the run began"
        try:
            for picture in read(self.base / name, start, count, self.column):
                yield picture
                done += 1
        except (OSError, tarfile.TarError, FusionerError) as error:
            reason = str(error)
        for _ in range(count - done):
            yield Picture("", FusionerError(f"{name} cannot be read any further: {reason}"))


def open_source(text: str, column: str | None = None) -> Source:
    """Return the source that a path or glob names; its kind follows from the file names."""
    path = find_path(Path(text).expanduser()) or Path(text).expanduser()
    if path.is_dir():
        text, base, files = str(path), path.absolute(), os.listdir(path)
    elif path.exists():
        if path.name.lower().endswith(_COMPRESSED):
            raise FusionerError(f"{path} is compressed as a whole and cannot be read in shards: unpack it to .tar")
        text, base, files = str(path), path.absolute().parent, [path.name]
    elif any(letter in text for letter in "*?["):
        base, files = Path.cwd(), glob(str(path), recursive=True)
        if not files:
            raise FusionerError(f"no file matches {text}")
    else:
        raise FusionerError(
            f"there is no {path}: give a folder, a glob, a list of files, Parquet files or tar archives"
        )
    suffixes = {Path(file).suffix.lower() for file in files}
    suffixes_of: dict[SourceKind, Set[str]] = {"parquet": {".parquet"}, "tar": {".tar"}, "files": image_suffixes()}
    kinds: list[SourceKind] = [kind for kind, known in suffixes_of.items() if suffixes & known]
    if len(kinds) > 1 and path.is_dir():
        found = "pictures, .parquet and .tar files"
        raise FusionerError(f'{path} holds more than one of {found}: name those to read by a glob, as "{path}/*.jpg"')
    kind = kinds[0] if kinds else "files"
    if kind == "files" and path.is_file() and path.suffix.lower() not in image_suffixes():
        _check_list(path)
    if column and kind != "parquet":
        raise FusionerError(f"--column names a column of Parquet files, and {text} is none: omit it")
    return Source(kind, base, text, column)


def _check_list(path: Path) -> None:
    """Raise a FusionerError for a file that is neither a picture of a supported format nor a list of names."""
    try:
        with path.open("rb") as file:
            is_text = b"\0" not in file.read(_LIST_HEAD)
    except OSError as error:
        raise cannot_read(f"the list {path}", error) from error
    if kind := unsupported_kind(path.name):
        raise FusionerError(f"{path} is not supported ({kind})")
    if not is_text:
        raise FusionerError(f"{path} is neither a picture nor a UTF-8 text with the path of one on each line")


def _read_list(path: Path) -> Iterator[str]:
    """Yield the non-blank lines of a list; bytes that are not UTF-8 stay as they are in file names."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from (line for line in (line.strip("\r\n") for line in file) if line.strip())
    except OSError as error:
        raise cannot_read(f"the list {path}", error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _open_parquet(path: Path, column: str | None) -> tuple[Any, str, str | None]:
    """Return an open file and its columns of pictures and of names; OSError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Small reads: a whole column chunk may have gigabytes.
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise OSError(f"damaged or not Parquet ({error})") from error
    names = file.schema_arrow.names
    found = next((name for name in ((column,) if column else COLUMNS) if name in names), None)
    if found is None:
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise FusionerError(f"{path} has no column {column or 'of pictures'}: name one with --column ({listed})")
    return file, found, next((name for name in NAME_COLUMNS if name in names and name != found), None)


def _read_parquet(path: Path, start: int, count: int, column: str | None) -> Iterator[Picture]:
    import pyarrow as pa

    file, image_column, name_column = _open_parquet(path, column)
    columns = [image_column, name_column] if name_column else [image_column]
    groups, skip, row, end = list(range(file.num_row_groups)), start, start, start + count
    while groups and skip >= (rows := file.metadata.row_group(groups[0]).num_rows):
        groups, skip = groups[1:], skip - rows
    with file:
        try:
            for batch in file.iter_batches(16, row_groups=groups, columns=columns, use_threads=False):
                for cell in batch.slice(skip).slice(0, end - row).to_pylist():
                    yield _parquet_picture(cell[image_column], cell.get(name_column or ""), path, row)
                    row += 1
                skip = max(0, skip - len(batch))
                if row == end:
                    return
        except pa.ArrowException as error:
            raise OSError(str(error)) from error


def _parquet_picture(value: Any, name: Any, path: Path, row: int) -> Picture:
    """Read a cell: bytes, a path, or a record of both (Hugging Face `datasets`)."""
    if isinstance(value, dict):
        name = name or value.get("path")
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Picture(str(name or f"row {row}"), value)
    if isinstance(value, str) and value:
        return Picture(value, find_path(value, path.parent) or path.parent / value)
    return Picture(str(name or f"row {row}"), FusionerError(f"row {row} of {path.name} holds no picture"))


def _tar_members(
    file: BinaryIO, on_left_out: OnLeftOut = lambda kind: None
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the pictures of an archive from the file's position on: the first of each WebDataset sample."""
    suffixes, sample = image_suffixes(), None
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while member := archive.next():
            vars(archive)["members"].clear()  # otherwise it grows by every member read
            folder, _, name = member.name.rpartition("/")
            key = folder, name.partition(".")[0]
            if not member.isfile() or name[:1] == "." or key == sample:
                continue
            if Path(name).suffix.lower() in suffixes:
                sample = key
                yield archive, member
            elif kind := unsupported_kind(name):
                on_left_out(kind)
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise tarfile.ReadError(f"it is damaged at byte {archive.offset}")


def _cut_tar(path: Path, size: int, on_left_out: OnLeftOut) -> list[tuple[int, int]]:
    """Read the headers only: about 10 microseconds per picture on a local disk."""
    offsets = array("Q")
    try:
        with path.open("rb") as file:
            for _, member in _tar_members(file, on_left_out):
                offsets.append(member.offset)
    except (OSError, tarfile.TarError):  # one more picture, which the reader turns into an error
        offsets.append(max(0, _size(path)))
    return [(offsets[start], min(size, len(offsets) - start)) for start in range(0, len(offsets), size)]


def _read_tar(path: Path, start: int, count: int, column: str | None) -> Iterator[Picture]:
    with path.open("rb") as file:
        file.seek(start)
        for archive, member in islice(_tar_members(file), count):
            if member.size > MAX_BYTES:
                message = f"{member.name} has {member.size:,} bytes, over {MAX_BYTES:,}"
                yield Picture(member.name, FusionerError(message))
                continue
            content = archive.extractfile(member)
            raw = content.read() if content else b""
            short = len(raw) < member.size
            yield Picture(member.name, FusionerError(f"{member.name} is cut short") if short else raw)
