"""What the user calls an input: a folder, a glob, a list, Parquet files or tar archives, cut into shards and read back.

Nothing here holds more than one folder's names, one Parquet batch or one picture's bytes. A shard always gives as many
pictures as were counted: where a file breaks half-way, the rest of its pictures carry the reason instead of a content.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from fusioner.errors import FusionerError
from fusioner.image import image_suffixes, list_images

Kind = Literal["files", "parquet", "tar"]
COLUMNS = ("image", "bytes", "image_bytes", "jpg", "jpeg", "png", "webp", "content", "path", "image_path", "file_name")
"""Names by which the column of pictures is found in a Parquet file."""
NAME_COLUMNS = ("__key__", "key", "id", "image_id", "name", "file_name", "filename", "path", "url")
LARGEST = 2**30  # bytes of one picture's file inside an archive


class Picture(NamedTuple):
    """One image of a shard: its name, and its file's bytes, its path, or why it has neither."""

    name: str
    content: bytes | Path | FusionerError


@dataclass(frozen=True)
class Piece:
    """Part of a container that one shard reads: where it starts (a row, a byte), and how many images it holds."""

    start: int
    count: int


@dataclass(frozen=True)
class Source:
    """Where the images are.

    Attributes:
        kind: image files, Parquet files or tar archives.
        base: what names are relative to.
        text: what the user wrote.
        column: of Parquet, where the user named it.
    """

    kind: Kind
    base: Path
    text: str
    column: str | None = None

    def names(self, out: Path) -> Iterator[str]:
        """Names of image files, or of containers, in a fixed order; what lies in `out` is left out."""
        path = Path(self.text).expanduser()
        if path.is_dir():
            found = list_images(path, out) if self.kind == "files" else sorted(path.glob(f"*.{self.kind}"))
            yield from (str(one.relative_to(path)) for one in found)
        elif not path.exists():
            yield from sorted(one for one in glob(str(path), recursive=True) if not Path(one).is_dir())
        elif self.kind != "files" or path.suffix.lower() in image_suffixes():
            yield path.name
        else:
            yield from _listed(path)

    def mark(self, name: str) -> str:
        """What tells one state of the input from another: names, and the size of containers."""
        return name if self.kind == "files" else f"{name} {_size(self.base / name)}"

    def cut(self, name: str, size: int) -> list[Piece]:
        """A container's pieces of at most `size` images; one that cannot be read is a piece of one, which is an error.

        Raises:
            FusionerError: a Parquet file has no column of pictures.
        """
        path = self.base / name
        if self.kind == "tar":
            return _cut_tar(path, size)
        try:
            rows = _parquet(path, self.column)[0].metadata.num_rows
        except OSError:
            rows = 1
        return [Piece(start, min(size, rows - start)) for start in range(0, rows, size)]

    def read(self, name: str, piece: Piece) -> Iterator[Picture]:
        """The pictures of a container's piece; as many as it counts."""
        read, done = _read_tar if self.kind == "tar" else _read_parquet, 0
        reason = "it holds fewer pictures than it did when the run began"
        try:
            for picture in read(self.base / name, piece, self.column):
                yield picture
                done += 1
        except (OSError, tarfile.TarError, FusionerError) as error:
            reason = str(error)
        for _ in range(piece.count - done):
            yield Picture("", FusionerError(f"{name} cannot be read any further: {reason}"))


def open_source(text: str, column: str | None = None) -> Source:
    """Find out what an input is, by what it names and by the endings of files.

    Raises:
        FusionerError: there is no such thing, or it is packed in a way that cannot be read from the middle.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        endings = {one.suffix for one in os.scandir(path) for one in [Path(one.name)]}
        return Source(_kind(endings), path.absolute(), text, column)
    if path.exists():
        if path.name.lower().endswith((".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2")):
            raise FusionerError(f"{path} is compressed as a whole and cannot be read in shards: unpack it to .tar")
        return Source(_kind({path.suffix}), path.absolute().parent, text, column)
    if any(letter in text for letter in "*?["):
        matches = glob(str(path), recursive=True)
        if not matches:
            raise FusionerError(f"no file matches {text}")
        return Source(_kind({Path(one).suffix for one in matches}), Path.cwd(), text, column)
    raise FusionerError(f"there is no {path}: give a folder, a glob, a list of files, Parquet files or tar archives")


def _kind(endings: set[str]) -> Kind:
    return "parquet" if ".parquet" in endings else "tar" if ".tar" in endings else "files"


def _listed(path: Path) -> Iterator[str]:
    """Lines of a list, blank ones left out; names that are no UTF-8 stay what they are on disk."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            yield from (line for line in (line.strip("\r\n") for line in file) if line.strip())
    except OSError as error:
        raise FusionerError(f"cannot read the list {path}: {error.strerror or error}") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _parquet(path: Path, column: str | None) -> tuple[Any, str, str | None]:
    """An open file, its column of pictures and of names; OSError when it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # From the disk in small reads: a whole column chunk may be gigabytes.
        file = pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise OSError(f"damaged or not Parquet ({error})") from error
    names = file.schema_arrow.names
    found = column if column in names else None if column else next((one for one in COLUMNS if one in names), None)
    if found is None:
        raise FusionerError(f"{path} has no column {column or 'of pictures'}: name one with --column ({_some(names)})")
    return file, found, next((one for one in NAME_COLUMNS if one in names and one != found), None)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _read_parquet(path: Path, piece: Piece, column: str | None) -> Iterator[Picture]:
    import pyarrow as pa

    file, pictures, names = _parquet(path, column)
    columns, before, left = [pictures, *([names] if names else [])], piece.start, piece.count
    with file:
        try:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if before >= rows:
                    before -= rows
                    continue
                for batch in file.iter_batches(16, row_groups=[group], columns=columns, use_threads=False):
                    some = batch.slice(before)
                    before = max(0, before - len(batch))
                    for row in some.slice(0, left).to_pylist():
                        yield _picture(row[pictures], row.get(names or ""), path, piece.start + piece.count - left)
                        left -= 1
                    if not left:
                        return
        except pa.ArrowException as error:
            raise OSError(str(error)) from error


def _picture(value: Any, name: Any, path: Path, row: int) -> Picture:
    """A cell: bytes, a path, or (as Hugging Face keeps pictures) a record of both."""
    if isinstance(value, dict):
        name = name or value.get("path")
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Picture(str(name or f"row {row}"), value)
    if isinstance(value, str) and value:
        return Picture(value, path.parent / value)
    return Picture(str(name or f"row {row}"), FusionerError(f"row {row} of {path.name} holds no picture"))


def _members(file: BinaryIO, path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The pictures of an archive from where the file stands: of each WebDataset sample the first.

    Raises:
        tarfile.TarError: the archive ends in the middle, or holds something else.
    """
    suffixes, sample = image_suffixes(), None
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while member := archive.next():
            vars(archive)["members"].clear()  # else it remembers every member it ever saw
            folder, _, name = member.name.rpartition("/")
            key = folder, name.partition(".")[0]
            if member.isfile() and name[:1] != "." and Path(name).suffix.lower() in suffixes and key != sample:
                sample = key
                yield archive, member
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
            raise tarfile.ReadError(f"it is damaged at byte {archive.offset}")


def _cut_tar(path: Path, size: int) -> list[Piece]:
    """Reads the headers only, about 10 microseconds a picture on a local disk."""
    starts: list[int] = []
    count = 0
    try:
        with path.open("rb") as file:
            for _, member in _members(file, path):
                if count % size == 0:
                    starts.append(member.offset)
                count += 1
    except (OSError, tarfile.TarError):  # one picture more, which the reader will not find
        if count % size == 0:
            starts.append(max(0, _size(path)))
        count += 1
    return [Piece(start, min(size, count - number * size)) for number, start in enumerate(starts)]


def _read_tar(path: Path, piece: Piece, column: str | None) -> Iterator[Picture]:
    with path.open("rb") as file:
        file.seek(piece.start)
        members = _members(file, path)
        for _ in range(piece.count):
            found = next(members, None)
            if found is None:
                return
            archive, member = found
            if member.size > LARGEST:
                yield Picture(member.name, FusionerError(f"{member.name} has {member.size:,} bytes, over {LARGEST:,}"))
                continue
            content = archive.extractfile(member)
            raw = content.read() if content else b""
            short = len(raw) < member.size
            yield Picture(member.name, FusionerError(f"{member.name} is cut short") if short else raw)
