"""Looking after a cache: count it, find damage and mend it, drop what is no longer wanted."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.build import sweep
from fusioner.features.cache import Key
from fusioner.features.locks import Presence
from fusioner.features.plan import Track
from fusioner.features.preprocess import encode, image_digest, pictures, read_bytes
from fusioner.features.shard import (
    Entry,
    Manifest,
    Rows,
    Stored,
    embedded,
    read_manifest,
    remove_shard,
    row_digest,
    shard_names,
    sidecar,
    spaces,
    write_shard,
)
from fusioner.features.space import Space
from fusioner.features.writer import check_tokens, pack


@dataclass
class Held:
    """What a cache holds in one space; `error` is the mean and worst rounding error of int8 tokens."""

    space: Space
    views: int = 0
    images: int = 0
    shards: int = 0
    size: int = 0
    error: tuple[float, float] | None = None


@dataclass(frozen=True)
class Damage:
    """What is wrong with one shard.

    Attributes:
        manifest: what it should hold; None when both copies are damaged.
        rows: the views whose numbers are damaged.
        what: one line for people.
    """

    folder: Path
    shard: str
    manifest: Manifest | None
    rows: tuple[int, ...]
    what: str


@dataclass
class Mended:
    """What a repair did: views encoded again, and those it had to drop, with the reason."""

    encoded: int = 0
    dropped: list[str] = field(default_factory=list)


@dataclass
class Pruned:
    """Views and bytes dropped and kept; `unreachable`: kept views of images whose whole folder is gone."""

    views: int = 0
    size: int = 0
    kept: int = 0
    unreachable: int = 0


def info(cache: Path) -> list[Held]:
    """What is there, by space; FusionerError when the folder is no cache."""
    found = []
    for folder, names in _shards_by_space(cache):
        manifests = [one for name in names if (one := read_manifest(folder, name))]
        if not manifests:
            continue
        keys = {(entry.digest, entry.view) for one in manifests for entry in one.entries}
        held = Held(manifests[0].space, len(keys), len({digest for digest, _ in keys}), len(names))
        held.size = sum(path.stat().st_size for path in folder.iterdir())
        if errors := [(*one.error, len(one.entries)) for one in manifests if one.error]:
            mean = sum(mean * n for mean, _, n in errors) / sum(n for *_, n in errors)
            held.error = (mean, max(worst for _, worst, _ in errors))
        found.append(held)
    return found


def verify(cache: Path, track: Track | None = None, workers: int = 2) -> list[Damage]:
    """Read every byte and compare with the checksums; FusionerError when the folder is no cache."""
    shards = [(folder, name) for folder, names in _shards_by_space(cache) for name in names]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda one: _inspect(*one), shards)
        shown = track(shards, "reading shards") if track else shards
        return [damage for _, damage in zip(shown, found, strict=True) if damage]


def _inspect(folder: Path, name: str) -> Damage | None:
    beside, inside = sidecar(folder, name), embedded(folder, name)
    path = folder / f"{name}.safetensors"
    manifest = beside or inside
    if manifest is None:
        return (
            Damage(folder, name, None, (), f"{path}: both copies of its manifest are damaged")
            if path.exists()
            else None
        )
    try:
        rows = Rows(path, manifest)
    except FileNotFoundError:  # pruned meanwhile
        return None
    except OSError as error:
        return Damage(folder, name, manifest, tuple(range(len(manifest.entries))), str(error))
    bad = tuple(row for row in range(len(manifest.entries)) if not rows.sound(row))
    if bad:
        entries = "; ".join(_named(manifest.entries[row]) for row in bad)
        return Damage(folder, name, manifest, bad, f"{path}: damaged tokens: {entries}")
    if beside is None:
        return Damage(folder, name, manifest, (), f"{folder / name}.json: damaged manifest")
    if inside is None:
        return Damage(folder, name, manifest, (), f"{path}: damaged header")
    return None


def repair(cache: Path, damages: Sequence[Damage], build: Callable[[str], ImageEncoder]) -> Mended:
    """Encode the damaged views again, and only those; all others move to a new shard as they are.

    Args:
        damages: of `verify`.
        build: makes an encoder of its name, for example `encoders.zoo.build_image_encoder`.

    Raises:
        FusionerError: somebody is writing to the cache, or the system refuses to write.
    """
    mended, encoders = Mended(), _Encoders(build)
    with Presence(cache) as presence:
        presence.require_alone()
        for damage in damages:
            if damage.manifest is None:
                mended.dropped.append(f"shard {damage.shard}: what it held is unknown")
            else:
                entries, rows = _mend(damage, damage.manifest, encoders, mended)
                _replace(damage.folder, damage.manifest, entries, rows)
            remove_shard(damage.folder, damage.shard)
    return mended


def _mend(
    damage: Damage, manifest: Manifest, encoders: "_Encoders", mended: Mended
) -> tuple[list[Entry], list[Stored]]:
    whole = len(damage.rows) < len(manifest.entries)
    old = Rows(damage.folder / f"{damage.shard}.safetensors", manifest) if whole else None
    entries, rows = [], []
    for number, entry in enumerate(manifest.entries):
        if number not in damage.rows and old is not None:
            entries.append(entry)
            rows.append(old[number])
            continue
        try:
            stored = encoders.encode(manifest.space, entry)
        except FusionerError as error:
            mended.dropped.append(f"{_named(entry)}: {error}")
            continue
        entries.append(entry._replace(sha256=row_digest(entry.digest, entry.view, stored)))
        rows.append(stored)
        mended.encoded += 1
    return entries, rows


class _Encoders:
    """Encoders by name, each built once."""

    def __init__(self, build: Callable[[str], ImageEncoder]) -> None:
        self.build, self.built = build, dict[str, ImageEncoder]()

    def encode(self, space: Space, entry: Entry) -> Stored:
        picture = pictures(Path(entry.image), entry.digest, [entry.view], space.resolution)
        if space.encoder not in self.built:
            self.built[space.encoder] = self.build(space.encoder)
        encoder = self.built[space.encoder]
        if encoder.fingerprint() != space.fingerprint:
            raise FusionerError(f"encoder '{space.encoder}' has other weights or another normalisation now")
        tokens = encode(encoder, torch.stack(picture))
        check_tokens(tokens, space)
        return pack(tokens, space.dtype)[0]


def prune(
    cache: Path,
    wanted: Callable[[Space], bool] = lambda _: True,
    missing_folders: bool = False,
    dry_run: bool = False,
    track: Track | None = None,
) -> Pruned:
    """Drop views of spaces nobody wants, of images that are gone or have changed, and what is there twice.

    Args:
        missing_folders: also drop images whose whole folder is gone; else it counts as a disk not mounted now.
        dry_run: count only.

    Raises:
        FusionerError: no cache, somebody is writing to it, or the system refuses to write.
    """
    pruned, images, seen = Pruned(), _Images(missing_folders), set[tuple[str, Key]]()
    _shards_by_space(cache)
    with Presence(cache) as presence:
        presence.require_alone()
        if not dry_run:
            sweep(cache)
        shards = [(folder, name) for folder, names in _shards_by_space(cache) for name in names]
        for folder, name in track(shards, "pruning shards") if track else shards:
            if manifest := read_manifest(folder, name):  # a damaged one is for repair
                keep = [row for row, entry in enumerate(manifest.entries) if (folder.name, entry[:2]) not in seen]
                keep = [row for row in keep if wanted(manifest.space) and images.there(manifest.entries[row], pruned)]
                seen |= {(folder.name, manifest.entries[row][:2]) for row in keep}
                pruned.kept += len(keep)
                pruned.views += len(manifest.entries) - len(keep)
                pruned.size += (len(manifest.entries) - len(keep)) * manifest.space.entry_bytes
                if not dry_run and len(keep) < len(manifest.entries):
                    _cut(folder, name, manifest, keep)
        for folder in [] if dry_run else spaces(cache):
            _remove_if_empty(folder)
    return pruned


class _Images:
    """Whether images are what they were, each read once."""

    def __init__(self, missing_folders: bool) -> None:
        self.missing_folders, self.digests = missing_folders, dict[str, str]()

    def there(self, entry: Entry, pruned: Pruned) -> bool:
        path = Path(entry.image)
        if not path.parent.is_dir():
            pruned.unreachable += not self.missing_folders
            return not self.missing_folders
        if entry.image not in self.digests:
            try:
                self.digests[entry.image] = image_digest(read_bytes(path))
            except FusionerError:
                self.digests[entry.image] = ""
        return self.digests[entry.image] == entry.digest


def _cut(folder: Path, name: str, manifest: Manifest, keep: Sequence[int]) -> None:
    if keep:
        rows = Rows(folder / f"{name}.safetensors", manifest)
        _replace(folder, manifest, [manifest.entries[row] for row in keep], [rows[row] for row in keep])
    remove_shard(folder, name)


def _replace(folder: Path, manifest: Manifest, entries: Sequence[Entry], rows: Sequence[Stored]) -> None:
    if entries:
        write_shard(folder, Manifest(manifest.space, tuple(entries), manifest.error), rows)


def _remove_if_empty(folder: Path) -> None:
    if all(path.name == ".claims" for path in folder.iterdir()):
        (folder / ".claims").unlink(missing_ok=True)
        folder.rmdir()


def _named(entry: Entry) -> str:
    return f"view {entry.view} of {entry.image}"


def _shards_by_space(cache: Path) -> Iterator[tuple[Path, list[str]]]:
    if not cache.is_dir():
        raise FusionerError(f"there is no feature cache {cache}: `fusioner features build` makes one")
    return ((folder, shard_names(folder)) for folder in spaces(cache))
