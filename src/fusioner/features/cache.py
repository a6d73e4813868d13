"""Content-addressed cache of image features: one file per encoder, resolution, image and view.

    CACHE/<CacheKey.name>/<sha256 of the image file>-<view>.safetensors

Each file is written under a temporary name and renamed, so a killed process leaves no partial entry, and readers need
no lock.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn

from fusioner.data.augment import view
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.image import read_image, resize_square
from fusioner.io import atomic_write, cannot_read

# Increase the final number when the pixels passed to an encoder change, so that entries made before are not used.
PREPROCESSING = "upright rgb8, squashed bilinear antialias, 1"
VIEWS = "flip, crop 0.45, jitter 0.3, seeded by the image's sha256, 1"

STALE_SECONDS = 3600.0
"""Age from which a temporary file is taken for the leftover of a killed process."""

_KEY_FOLDER, _ENTRY = re.compile("[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}-\d+\.safetensors")
_CHECKSUM_START = 8 + len('{"__metadata__":{"sha256":"')
_CHECKSUM = slice(_CHECKSUM_START, _CHECKSUM_START + 64)
_MAX_HEADER = 2**16


@dataclass(frozen=True)
class CacheKey:
    """Everything that determines the tokens apart from the image and the view."""

    encoder: str  # for display only: encoders of equal weights share entries
    fingerprint: str  # sha256 of its weights and normalisation
    resolution: int
    dim: int  # width of a token
    grid: tuple[int, int]  # rows and columns of tokens
    preprocessing: str = PREPROCESSING  # versions of the pixel transforms
    views: str = VIEWS

    @classmethod
    def of(cls, encoder: ImageEncoder, resolution: int) -> Self:
        """Return the key of an encoder at a resolution; FusionerError if not even one token fits."""
        side = resolution // encoder.stride
        if side < 1:
            raise FusionerError(
                f"a token of {encoder.name} is {encoder.stride} px wide: {resolution} px are too few, use 224 or more"
            )
        return cls(encoder.name, encoder.fingerprint(), resolution, encoder.dim, (side, side))

    @property
    def name(self) -> str:
        """Folder name: a hash of all fields except the encoder's name."""
        content = asdict(self)
        del content["encoder"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def entry_bytes(self) -> int:
        """Bytes of the fp16 tokens of one view."""
        return 2 * self.dim * math.prod(self.grid)


class EntryHeader(NamedTuple):
    """Metadata of an entry: its key, its file name, and the path of the image when it was encoded."""

    key: CacheKey
    file_name: str
    image: str


class FeatureCache:
    """Cached tokens of one encoder at one resolution (side in pixels), stored as fp16.

    The folder is created on the first write; processes and machines may share it.
    """

    def __init__(self, folder: str | Path, encoder: ImageEncoder, resolution: int) -> None:
        self.encoder, self.key = encoder, CacheKey.of(encoder, resolution)
        self.root = Path(folder).expanduser()
        self.folder = self.root / self.key.name
        self._verified: set[str] = set()

    def path(self, digest: str, view: int) -> Path:
        """Return the file of an entry, which may not exist yet."""
        return self.folder / f"{digest}-{view}.safetensors"

    def contains(self, digest: str, view: int) -> bool:
        """Return whether a complete entry exists; its numbers are not read."""
        with _missing_ok(self.root), self.path(digest, view).open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            return os.fstat(file.fileno()).st_size == 8 + header + self.key.entry_bytes
        return False

    def get(self, digest: str, view: int = 0) -> Float16[Tensor, "d gh gw"] | None:
        """Return the tokens of a view, or None if the entry is missing, truncated or corrupt.

        The checksum is verified the first time this object reads the entry.
        """
        path, raw = self.path(digest, view), bytearray()
        with _missing_ok(self.root):
            raw = bytearray(path.read_bytes())
        start = len(raw) - self.key.entry_bytes
        if start != 8 + int.from_bytes(raw[:8], "little"):  # none, truncated, or changed since it was verified
            return None
        if path.name not in self._verified:
            if find_damage(path, raw) is not None:
                return None
            self._verified.add(path.name)
        return torch.frombuffer(raw, dtype=torch.float16, offset=start).view(self.key.dim, *self.key.grid)

    def put(self, digest: str, view: int, image: Path, tokens: Float16[Tensor, "d gh gw"]) -> None:
        """Store the tokens of a view."""
        path = self.path(digest, view)
        content = _pack(EntryHeader(self.key, path.name, str(image.absolute())), tokens)
        with atomic_write(path, flush=False) as beside:
            beside.write_bytes(content)

    def tokens(self, image: Path, digest: str | None = None, view: int = 0) -> Float16[Tensor, "d gh gw"]:
        """Return the tokens of a view of an image file (of sha256 `digest`), encoding and storing them if missing."""
        digest = digest or image_digest(read_bytes(image))
        tokens = self.get(digest, view)
        if tokens is None:
            tokens = self.encode(torch.stack(load_views(image, digest, [view], self.key.resolution)))[0]
            self.put(digest, view, image, tokens)
        return tokens

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float16[Tensor, "b d gh gw"]:
        """Encode images into fp16 tokens on the CPU; FusionerError for a wrong shape or non-finite values."""
        tokens, expected = encode(self.encoder, pixels), (self.key.dim, *self.key.grid)
        if tuple(tokens.shape[1:]) != expected:
            raise FusionerError(
                f"encoder '{self.key.encoder}' returns tokens of shape {tuple(tokens.shape[1:])} at "
                f"{self.key.resolution} px, its width and stride promise {expected}"
            )
        if not tokens.isfinite().all():
            raise FusionerError(
                f"encoder '{self.key.encoder}' returns values that are not finite: its weights are corrupt"
            )
        return tokens.half().cpu()


@contextmanager
def _missing_ok(cache: Path) -> Iterator[None]:
    """Leave the context where a file is missing; raise a FusionerError where it cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise cannot_read(f"the feature cache {cache}", error) from error


def _pack(header: EntryHeader, tokens: Float16[Tensor, "d gh gw"]) -> bytes:
    """Return the safetensors file of an entry. Its checksum covers every other byte, including the header."""
    numbers = tokens.contiguous().numpy().tobytes()
    metadata = {"sha256": "0" * 64, **header._asdict(), "key": json.dumps(asdict(header.key))}
    array = {"dtype": "F16", "shape": list(tokens.shape), "data_offsets": [0, len(numbers)]}
    text = json.dumps({"__metadata__": metadata, "tokens": array}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the numbers
    raw = bytearray(len(text).to_bytes(8, "little") + text + numbers)
    raw[_CHECKSUM] = _checksum(raw)
    return bytes(raw)


def _checksum(raw: bytes | bytearray) -> bytes:
    digest = hashlib.sha256(memoryview(raw)[: _CHECKSUM.start])
    digest.update(memoryview(raw)[_CHECKSUM.stop :])
    return digest.hexdigest().encode()


def find_damage(path: Path, raw: bytes | bytearray | None = None) -> str | None:
    """Return the damage of an entry's file (`raw`: its content) in words, or None if it is intact."""
    raw = path.read_bytes() if raw is None else raw
    if bytes(raw[_CHECKSUM]) != _checksum(raw):
        return "the checksum does not match"
    header = _parse_header(bytes(raw[8 : 8 + int.from_bytes(raw[:8], "little")]))
    if header is None or (header.file_name, header.key.name) != (path.name, path.parent.name):
        return "it belongs to another entry"
    return None


def read_header(path: Path) -> EntryHeader | None:
    """Read the metadata of an entry without its numbers; None if the file is gone or its header is corrupt."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return _parse_header(file.read(length)) if length <= _MAX_HEADER else None
    return None


def _parse_header(text: bytes) -> EntryHeader | None:
    try:
        metadata = json.loads(text)["__metadata__"]
        key = json.loads(metadata["key"])
        return EntryHeader(CacheKey(**{**key, "grid": tuple(key["grid"])}), metadata["file_name"], metadata["image"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def key_folders(cache: Path) -> list[Path]:
    """Return the folders of a cache, one per key; unrelated folders are ignored."""
    if not cache.is_dir():
        return []
    return sorted(path for path in cache.iterdir() if _KEY_FOLDER.fullmatch(path.name) and path.is_dir())


def entry_files(folder: Path) -> list[Path]:
    """Return the files of all entries of a key's folder, sorted; none if there is no such folder."""
    with _missing_ok(folder.parent):
        return sorted(path for path in folder.iterdir() if _ENTRY.fullmatch(path.name))
    return []


def remove_stale_files(cache: Path) -> None:
    """Delete temporary files that killed processes have left in a cache."""
    for path in (path for folder in key_folders(cache) for path in folder.glob(".part-*")):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


@torch.no_grad()
def encode(encoder: ImageEncoder, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d gh gw"]:
    """Encode images into float32 tokens on the encoder's device (computed in bfloat16 on CUDA, as in `Segmenter`)."""
    device = device_of(encoder)
    with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
        return encoder(pixels.to(device)).float()


def device_of(encoder: ImageEncoder) -> torch.device:
    """Return the device of an encoder's weights."""
    weights = encoder.parameters() if isinstance(encoder, nn.Module) else iter(())
    return next(weights, torch.empty(0)).device


def read_bytes(image: Path) -> bytes:
    """Read an image file without decoding it; FusionerError if that fails."""
    try:
        return image.read_bytes()
    except OSError as error:
        raise cannot_read(f"image {image}", error) from error


def image_digest(raw: bytes) -> str:
    """Return the sha256 (hex) of an image file's bytes, which identifies the image in the cache."""
    return hashlib.sha256(raw).hexdigest()


def view_seed(digest: str) -> int:
    """Return the random seed of an image's views, which depends on its content only."""
    return int(digest[:15], 16)


def load_views(image: Path, digest: str, views: Sequence[int], side: int) -> list[Float[Tensor, "3 s s"]]:
    """Return views of an image file, resized to `side` pixels; FusionerError unless its sha256 is `digest`."""
    raw = read_bytes(image)
    if image_digest(raw) != digest:
        raise FusionerError(f"image {image} has changed since it was indexed: run this again")
    rgb = read_image(raw, str(image))
    return [resize_square(view(rgb, number, view_seed(digest)), side) for number in views]
