"""One file of stored tokens and its manifest.

A shard NAME is a pair: NAME.json, the manifest, and NAME.safetensors, the numbers, whose header holds the manifest a
second time. The manifest is written first and the safetensors file renamed into place last: that rename is what makes
the shard exist. A shard is never changed, only replaced by another of a new name. Every byte of both files is covered
by a checksum or follows from what is, so that any single one may break without loss of more than one entry.

    NAME.json           {"sha256": ..., "format": 1, "space": {...}, "error": [...], "entries": [[...], ...]}
    NAME.safetensors    scales (N, Gh, Gw) float32, int8 only; tokens (N, D, Gh, Gw) float16 or int8
"""

import hashlib
import json
import math
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.features.quantise import Quantised
from fusioner.features.space import Space
from fusioner.io import atomic_write

FORMAT = 1
_CHECKED_FROM = len('{"sha256":"') + 64 + len('",')
_LARGEST_HEADER = 2**27
_SPACE, _SHARD = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{16}")
Stored = Tensor | Quantised


class Entry(NamedTuple):
    """One stored view.

    Attributes:
        digest: sha256 of the image file's bytes.
        view: its number.
        sha256: of this entry's name and numbers, see `row_digest`.
        image: absolute path of the image when it was encoded.
    """

    digest: str
    view: int
    sha256: str
    image: str


@dataclass(frozen=True)
class Manifest:
    """What a shard holds, row by row.

    Attributes:
        error: mean and worst rounding error of its tokens (see `quantise.Rounding`), for int8.
    """

    space: Space
    entries: tuple[Entry, ...]
    error: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """Its JSON, in ASCII, beginning with the checksum of all that follows."""
        content = {"format": FORMAT, "space": self.space.to_dict(), "error": self.error, "entries": self.entries}
        rest = json.dumps(content, separators=(",", ":"))[1:]
        return f'{{"sha256":"{hashlib.sha256(rest.encode()).hexdigest()}",{rest}'

    @classmethod
    def parse(cls, text: str) -> "Manifest | None":
        """The manifest of a text; None where it is damaged or of another format."""
        expected = f'{{"sha256":"{hashlib.sha256(text[_CHECKED_FROM:].encode()).hexdigest()}",'
        if text[:_CHECKED_FROM] != expected:
            return None
        content = json.loads("{" + text[_CHECKED_FROM:])
        if content.pop("format") != FORMAT:
            return None
        error = tuple(content["error"]) if content["error"] else None
        return cls(Space.from_dict(content["space"]), tuple(Entry(*row) for row in content["entries"]), error)

    @property
    def header(self) -> bytes:
        """The head of the safetensors file, to the byte."""
        tensors, offset = {}, 0
        for name, kind, shape, size in self._tensors():
            tensors[name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        head = json.dumps({"__metadata__": {"manifest": self.text}, **tensors}, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head

    @cached_property
    def head_bytes(self) -> int:
        """Length of `header`."""
        return len(self.header)

    @property
    def data_bytes(self) -> int:
        """Bytes of the numbers."""
        return len(self.entries) * self.space.entry_bytes

    def _tensors(self) -> Iterator[tuple[str, str, list[int], int]]:
        n, tokens = len(self.entries), math.prod(self.space.grid)
        if self.space.dtype == "int8":
            yield "scales", "F32", [n, *self.space.grid], n * tokens * 4
        kind, width = ("F16", 2) if self.space.dtype == "fp16" else ("I8", 1)
        yield "tokens", kind, [n, self.space.dim, *self.space.grid], n * tokens * self.space.dim * width


class Rows:
    """The numbers of a shard, mapped into memory: reading a row copies nothing.

    Raises:
        OSError: the file is not there (any more) or is shorter or longer than its manifest says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        size = path.stat().st_size
        # Found from the end, so that a broken header does not matter.
        start = size - manifest.data_bytes
        if start != manifest.head_bytes:
            raise OSError(f"{path} has {size} bytes, not {manifest.head_bytes + manifest.data_bytes}")
        try:
            raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[start:]
        except RuntimeError as error:  # how torch says that the file went away in between
            raise OSError(str(error)) from error
        self.manifest, space, n = manifest, manifest.space, len(manifest.entries)
        self._scales: Tensor | None = None
        if space.dtype == "int8":
            split = n * math.prod(space.grid) * 4
            self._scales = raw[:split].view(torch.float32).view(n, *space.grid)
            self._tokens = raw[split:].view(torch.int8).view(n, space.dim, *space.grid)
        else:
            self._tokens = raw.view(torch.float16).view(n, space.dim, *space.grid)

    def __getitem__(self, row: int) -> Stored:
        """A view into the file; writing to it changes memory only."""
        return self._tokens[row] if self._scales is None else Quantised(self._tokens[row], self._scales[row])

    def sound(self, row: int) -> bool:
        """Whether a row is what was once written."""
        entry = self.manifest.entries[row]
        return row_digest(entry.digest, entry.view, self[row]) == entry.sha256


def parts(stored: Stored) -> tuple[Tensor, ...]:
    """The tensors of a stored view in the order they are hashed and laid down."""
    return (stored.scales, stored.values) if isinstance(stored, Quantised) else (stored,)


def row_digest(digest: str, view: int, stored: Stored) -> str:
    """Sha256 of an entry: its numbers and what they claim to be, so that rows cannot be mistaken for each other."""
    total = hashlib.sha256(f"{digest}/{view}/".encode())
    for part in parts(stored):
        total.update(_bytes(part))
    return total.hexdigest()


def write_shard(folder: Path, manifest: Manifest, rows: Sequence[Stored]) -> str:
    """Write a new shard and return its name; after a crash at any moment it is there whole or not at all.

    Raises:
        FusionerError: the system refuses to write.
    """
    name = secrets.token_hex(8)
    with atomic_write(folder / f"{name}.json") as beside:
        beside.write_text(manifest.text, encoding="ascii")
    try:
        with atomic_write(folder / f"{name}.safetensors") as beside, beside.open("wb") as file:
            file.write(manifest.header)
            _write_rows(file, rows)
    except BaseException:
        (folder / f"{name}.json").unlink(missing_ok=True)
        raise
    return name


def _write_rows(file: BinaryIO, rows: Sequence[Stored]) -> None:
    for column in zip(*(parts(row) for row in rows), strict=True):  # all scales, then all tokens
        for part in column:
            file.write(_bytes(part))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def read_manifest(folder: Path, name: str) -> Manifest | None:
    """The manifest of a shard from either of its two places; None where both are damaged or gone."""
    return sidecar(folder, name) or embedded(folder, name)


def sidecar(folder: Path, name: str) -> Manifest | None:
    """The manifest of NAME.json; None where it is damaged or gone."""
    try:
        return Manifest.parse((folder / f"{name}.json").read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        return None


def embedded(folder: Path, name: str) -> Manifest | None:
    """The manifest inside NAME.safetensors; None unless every byte of the file's head is as it was written."""
    try:
        with (folder / f"{name}.safetensors").open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(length) if length < _LARGEST_HEADER else b""
        manifest = Manifest.parse(json.loads(head)["__metadata__"]["manifest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return manifest if manifest and manifest.header[8:] == head else None


def spaces(cache: Path) -> list[Path]:
    """The folders of a cache, one a space; other folders that somebody put there are left alone."""
    if not cache.is_dir():
        return []
    return sorted(path for path in cache.iterdir() if _SPACE.fullmatch(path.name) and path.is_dir())


def shard_names(folder: Path) -> list[str]:
    """Names of the shards of a space's folder; none where there is no folder."""
    return _names(folder, ".safetensors")


def orphans(folder: Path) -> list[Path]:
    """Files that belong to no shard: what a writer that was killed leaves."""
    whole = set(shard_names(folder))
    lonely = [folder / f"{name}.json" for name in _names(folder, ".json") if name not in whole]
    return lonely + list(folder.glob(".part-*"))


def _names(folder: Path, suffix: str) -> list[str]:
    try:
        return sorted(p.stem for p in folder.iterdir() if p.suffix == suffix and _SHARD.fullmatch(p.stem))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FusionerError(f"cannot read the feature cache {folder.parent}: {error.strerror}") from error


def remove_shard(folder: Path, name: str) -> None:
    """Delete a shard; who has it mapped keeps reading."""
    (folder / f"{name}.safetensors").unlink(missing_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
