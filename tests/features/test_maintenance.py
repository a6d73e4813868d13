"""Test that damage is found and costs one view, and that unwanted entries are removed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.features.build import cache_features
from fusioner.features.cache import FeatureCache, image_digest
from fusioner.features.dataset import LiveSource
from fusioner.features.maintenance import info, prune, verify

SIDE = 32


def files(cache: Path) -> list[Path]:
    """Return the files of the cache that are not empty."""
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= bits
    path.write_bytes(raw)


def damaged_copy(cache: Path, copy: Path, which: int, place: float, bits: int) -> tuple[Path, Path]:
    """Copy a cache and flip bits of one byte; `place` is a fraction of the file. Returns the copy and the file."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(cache, copy)
    path = files(copy)[which]
    flip(path, int(place * path.stat().st_size), bits)
    return copy, path


def is_right(cache: Path, data: SegmentationData, encoder, views: int, live: torch.Tensor | None = None) -> bool:
    """Return whether a completed cache holds what the encoder returns (`live` if precomputed)."""
    pairs = [(item, view) for item in data.items for view in range(views)]
    live = LiveSource(data, encoder, SIDE).batch(pairs)[0] if live is None else live
    return torch.equal(cache_features(cache, data, encoder, SIDE, views=views).batch(pairs)[0], live.half().float())


@pytest.fixture
def live(data: SegmentationData, encoder) -> torch.Tensor:
    """Encode two views of every image."""
    return LiveSource(data, encoder, SIDE).batch([(item, view) for item in data.items for view in range(2)])[0]


@pytest.fixture
def cache(data: SegmentationData, encoder, tmp_path: Path) -> Path:
    """Build a cache of twelve entries, two views of each image."""
    cache_features(tmp_path / "cache", data, encoder, SIDE, views=2)
    encoder.encoded = 0
    return tmp_path / "cache"


def test_an_intact_cache_has_no_damage(cache: Path):
    assert verify(cache) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 11), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_any_flipped_byte_is_found_and_costs_one_view(
    cache: Path, live, data, encoder, tmp_path: Path, which: int, place: float, bits: int
):
    damaged, path = damaged_copy(cache, tmp_path / "struck", which, place, bits)
    (damage,) = verify(damaged)
    assert damage.path == path
    damage.path.unlink()
    encoder.encoded = 0
    assert is_right(damaged, data, encoder, 2, live)
    assert encoder.encoded == 1
    assert verify(damaged) == []
    assert len(files(damaged)) == 12


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 11), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_damaged_entry_is_encoded_again_when_read(
    cache: Path, live, data, encoder, tmp_path: Path, which: int, place: float, bits: int
):
    damaged, _ = damaged_copy(cache, tmp_path / "struck", which, place, bits)
    encoder.encoded = 0
    assert is_right(damaged, data, encoder, 2, live)
    assert encoder.encoded == 1


def test_a_damaged_entry_is_reported_with_its_image(cache: Path, data, encoder):
    path = FeatureCache(cache, encoder, SIDE).path(image_digest(data.items[5].image.read_bytes()), 1)
    flip(path, path.stat().st_size - 1)
    (damage,) = verify(cache)
    assert (damage.path, damage.reason) == (path, "the checksum does not match")
    assert damage.image.endswith("5.png")


@pytest.mark.parametrize("kind", ["cut", "grown", "header", "empty", "renamed"])
def test_larger_damage(cache: Path, data, encoder, kind: str):
    path, other = files(cache)[:2]
    raw = path.read_bytes()
    content = {
        "cut": raw[:-1],
        "grown": raw + b"x",
        "header": bytes(100) + raw[100:],
        "empty": b"",
        "renamed": other.read_bytes(),
    }
    path.write_bytes(content[kind])
    (damage,) = verify(cache)
    assert damage.path == path
    path.unlink()
    assert verify(cache) == []
    assert is_right(cache, data, encoder, 2)


def test_info_counts(cache: Path, data, encoder):
    cache_features(cache, data, encoder, SIDE + 4)
    small, large = sorted(info(cache), key=lambda found: found.key.resolution)
    assert (small.views, small.images) == (12, 6)
    assert (large.views, large.images) == (6, 6)
    assert small.size == sum(path.stat().st_size for path in (cache / small.key.name).iterdir())


def test_a_missing_folder_is_one_sentence(tmp_path: Path):
    for function in (info, verify, prune):
        with pytest.raises(FusionerError, match="there is no feature cache"):
            function(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_prune_drops_images_that_are_gone_or_changed(cache: Path, data, encoder):
    data.items[0].image.unlink()
    pixels = np.asarray(Image.open(data.items[1].image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(data.items[1].image)
    assert prune(cache, dry_run=True).views == 4
    assert len(files(cache)) == 12
    pruned = prune(cache)
    assert (pruned.views, pruned.kept, pruned.unreachable) == (4, 8, 0)
    assert pruned.size == 4 * 2 * 8 * 8 * 8
    assert verify(cache) == []
    data.items = data.items[2:]
    assert is_right(cache, data, encoder, 2)
    assert prune(cache).views == 0
    assert encoder.encoded <= 8  # by is_right only


def test_prune_removes_unused_keys_and_their_folders(cache: Path, data, encoder, make_encoder):
    other = make_encoder(1)
    cache_features(cache, data, other, SIDE)
    pruned = prune(cache, lambda key: key.fingerprint == other.fingerprint())
    assert (pruned.views, pruned.kept) == (12, 6)
    (found,) = info(cache)
    assert found.key.fingerprint == other.fingerprint()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_prune_keeps_entries_of_images_on_an_unmounted_disk(cache: Path, root: Path):
    unmounted = root.with_name("away")
    root.rename(unmounted)
    pruned = prune(cache)
    assert (pruned.views, pruned.kept, pruned.unreachable) == (0, 12, 12)
    unmounted.rename(root)
    assert prune(cache).unreachable == 0
    root.rename(unmounted)
    assert prune(cache, missing_folders=True).views == 12


def test_prune_leaves_other_files(data, encoder, tmp_path: Path):
    """Prune a folder that is not a cache."""
    (tmp_path / "project").mkdir()
    for name in ("package.json", f"{'ab' * 8}.json", ".part-1"):
        (tmp_path / "project" / name).write_text("{}")
    (tmp_path / "notes.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert prune(tmp_path).views == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reader_finds_again_what_was_pruned_meanwhile(cache: Path, data, encoder):
    reader = cache_features(cache, data, encoder, SIDE, views=2)
    wanted = [(item, view) for item in data.items for view in range(2)]
    expected = reader.batch(wanted)[0]
    assert prune(cache, lambda _: False).views == 12
    assert torch.equal(reader.batch(wanted)[0], expected)
    assert encoder.encoded == 12


def unreadable(path: Path) -> Callable[[], None]:
    path.chmod(0)
    return lambda: path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root ignores permissions")
def test_a_folder_that_may_not_be_read_is_an_error(cache: Path, data, encoder):
    undo = unreadable(next(path for path in cache.iterdir() if path.is_dir()))
    with pytest.raises(FusionerError, match="cannot read the feature cache"):
        cache_features(cache, data, encoder, SIDE)
    undo()
