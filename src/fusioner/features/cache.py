"""The cache folder, and what it holds for one encoder at one resolution.

    CACHE/<key of a Space>/<shard>.safetensors and .json

Reading takes no lock: a shard is there whole or not at all, and a file deleted while it is read stays readable.
"""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.locks import Presence
from fusioner.features.preprocess import encode, image_digest, pictures, read_bytes
from fusioner.features.quantise import Quantised, restore
from fusioner.features.shard import Manifest, Rows, Stored, read_manifest, shard_names
from fusioner.features.space import Dtype, Space
from fusioner.features.writer import Finished, ShardWriter

Key = tuple[str, int]
"""Digest of an image, number of a view."""

_MAPPED = 4096  # shards mapped at a time; Linux allows a process 65530 mappings


class Shelf:
    """The entries of one space: look up, read.

    Attributes:
        folder: where its shards are; space: what they have in common.
    """

    def __init__(self, folder: Path, space: Space) -> None:
        self.folder, self.space = folder, space
        self._manifests: dict[str, Manifest | None] = {}
        self._index: dict[Key, tuple[str, int]] = {}
        self._mapped: dict[str, Rows] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: Key) -> bool:
        return key in self._index

    def refresh(self) -> None:
        """Take in what other processes have added or removed; other threads may read meanwhile."""
        known = self._manifests
        self._manifests = {
            name: known[name] if name in known else self._read(name) for name in shard_names(self.folder)
        }
        gone = known.keys() - self._manifests.keys()
        for name in gone:
            self._mapped.pop(name, None)
        index = {} if gone else self._index
        for name, manifest in self._manifests.items():
            if manifest and (gone or name not in known):
                for row, entry in enumerate(manifest.entries):
                    index.setdefault((entry.digest, entry.view), (name, row))
        self._index = index

    def get(self, digest: str, view: int) -> Stored | None:
        """A view's stored numbers, mapped from disk; None where there are none.

        Raises:
            FusionerError: the file that should hold them is damaged.
        """
        for _ in range(2):
            place = self._index.get((digest, view))
            if place is None:
                return None
            try:
                return self._rows(place[0])[place[1]]
            except FileNotFoundError:  # pruned or replaced meanwhile
                self.refresh()
        return None

    def read(self, keys: Sequence[Key], dtype: torch.dtype = torch.float32) -> Float[Tensor, "b d gh gw"]:
        """Several views as one tensor: the only copy is the one from the file.

        Raises:
            FusionerError: a view is not there, or its file is damaged.
        """
        out = torch.empty((len(keys), self.space.dim, *self.space.grid), dtype=dtype)
        for row, (digest, view) in zip(out, keys, strict=True):
            stored = self.get(digest, view)
            if stored is None:
                raise FusionerError(f"the feature cache has no view {view} of the image with sha256 {digest}")
            if isinstance(stored, Quantised):
                restore(stored, out=row)
            else:
                row.copy_(stored)
        return out

    def place(self, digest: str, view: int) -> tuple[str, int] | None:
        """The shard that holds a view and its row there; None where there is none."""
        return self._index.get((digest, view))

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """The keys that are not there, in order."""
        return [key for key in keys if key not in self._index]

    def _read(self, name: str) -> Manifest | None:
        """A manifest, unless it is damaged in both places or its file is cut short: then its entries count as lost."""
        manifest = read_manifest(self.folder, name)
        if manifest is None or manifest.space.key != self.space.key:
            return None
        try:
            size = (self.folder / f"{name}.safetensors").stat().st_size
        except FileNotFoundError:
            return None
        return manifest if size == manifest.head_bytes + manifest.data_bytes else None

    def _rows(self, name: str) -> Rows:
        rows = self._mapped.get(name)
        if rows is not None:
            return rows
        manifest = self._manifests.get(name)
        if manifest is None:
            raise FileNotFoundError(name)
        try:
            rows = Rows(self.folder / f"{name}.safetensors", manifest)
        except FileNotFoundError:
            raise
        except OSError as error:
            mend = f"fusioner features verify {self.folder.parent} --repair"
            raise FusionerError(f"the feature cache is damaged ({error}): run `{mend}`") from error
        self._mapped[name] = rows
        if len(self._mapped) > _MAPPED:
            self._mapped.pop(next(iter(self._mapped)), None)
        return rows


class FeatureCache:
    """A folder of features; it and what is in it are made when first written to.

    Args:
        folder: anywhere with room; several processes and machines may share it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._shelves: dict[str, Shelf] = {}
        self._writers: dict[str, ShardWriter] = {}
        self._open = ExitStack()
        weakref.finalize(self, self._open.close)

    def shelf(self, encoder: ImageEncoder, resolution: int, dtype: Dtype = "fp16") -> Shelf:
        """What is stored of an encoder's tokens at a resolution (px)."""
        return self.shelf_of(Space.of(encoder, resolution, dtype))

    def shelf_of(self, space: Space) -> Shelf:
        """The shelf of a space; the same object every time."""
        if space.key not in self._shelves:
            self._shelves[space.key] = Shelf(self.folder / space.key, space)
        return self._shelves[space.key]

    def tokens(self, encoder: ImageEncoder, image: Path, resolution: int) -> Float[Tensor, "1 d gh gw"]:
        """The tokens of one squashed image, in half precision: from the cache, or encoded now and kept.

        New entries are written now and then and by `close`, which also happens when the cache is forgotten or Python
        ends.

        Raises:
            FusionerError: the image cannot be read, the folder cannot be written to, or an entry's file is damaged.
        """
        shelf = self.shelf(encoder, resolution)
        digest = image_digest(read_bytes(image))
        found = shelf.get(digest, 0)
        if found is None:
            writer = self._writer(shelf)
            found = writer.pending(digest, 0)
            if found is None:
                found = writer.pack(encode(encoder, torch.stack(pictures(image, digest, [0], resolution))))[0]
                writer.add(Finished(digest, 0, str(image.absolute()), found))
                writer.flush_if_due()
        assert isinstance(found, Tensor)  # only fp16 shelves are opened here
        return found[None]

    def close(self) -> None:
        """Write what `tokens` has encoded, and let go of the folder."""
        self._writers.clear()
        self._open.close()

    def _writer(self, shelf: Shelf) -> ShardWriter:
        key, space = shelf.space.key, shelf.space
        if key not in self._writers:
            self._open.enter_context(Presence(self.folder).together())
            # In the calling thread: when Python ends no other can be started any more.
            writer = ShardWriter(shelf.folder, space, lambda _: shelf.refresh(), background=False)
            self._writers[key] = self._open.enter_context(writer)
        return self._writers[key]
