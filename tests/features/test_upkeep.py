"""Damage is found wherever it is, and mended for the price of one view; what nobody wants goes."""

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
from fusioner.features.cache import FeatureCache
from fusioner.features.dataset import LiveSource
from fusioner.features.fill import fill
from fusioner.features.locks import Presence
from fusioner.features.maintenance import info, prune, repair, verify
from fusioner.features.shard import read_manifest, remove_shard, shard_names

SIDE = 32


def files(cache: Path) -> list[Path]:
    """Every file of the cache that holds anything."""
    return sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path: Path, place: int, bits: int = 0xFF) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= bits
    path.write_bytes(raw)


def is_right(cache: Path, data: SegmentationData, encoder, views: int, live: torch.Tensor | None = None) -> bool:
    """Whether a build finishes it, and everything in it is what the encoder gives (live: known already)."""
    wanted = [(item, view) for item in data.items for view in range(views)]
    live = LiveSource(data, encoder, SIDE).batch(wanted)[0] if live is None else live
    return torch.equal(fill(cache, data, encoder, SIDE, views=views).batch(wanted)[0], live.half().float())


@pytest.fixture
def live(data: SegmentationData, encoder) -> torch.Tensor:
    """Two views of every image, encoded now."""
    return LiveSource(data, encoder, SIDE).batch([(item, view) for item in data.items for view in range(2)])[0]


@pytest.fixture
def cache(data: SegmentationData, encoder, tmp_path: Path) -> Path:
    """Two shards of six views each."""
    for views in (1, 2):
        fill(tmp_path / "cache", data, encoder, SIDE, views=views)
    encoder.encoded = 0
    return tmp_path / "cache"


def test_a_sound_cache_is_sound(cache: Path):
    assert verify(cache) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_any_flipped_byte_is_found_and_mended_for_one_view_at_most(
    cache: Path, live, data, encoder, tmp_path: Path, which: int, place: float, bits: int
):
    struck = tmp_path / "struck"
    shutil.rmtree(struck, ignore_errors=True)
    shutil.copytree(cache, struck)
    assert len(files(struck)) == 4
    path = files(struck)[which]
    flip(path, int(place * path.stat().st_size), bits)
    (damage,) = verify(struck)
    assert path.stem == damage.shard
    encoder.encoded = 0
    mended = repair(struck, [damage], lambda name: encoder)
    assert (mended.encoded, mended.dropped) == (len(damage.rows), [])
    assert encoder.encoded == len(damage.rows) <= 1
    assert verify(struck) == []
    assert len(FeatureCache(struck).shelf(encoder, SIDE)) == 12
    assert is_right(struck, data, encoder, 2, live)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 3), place=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_a_flipped_byte_outside_the_numbers_is_survived_even_unmended(
    cache: Path, live, data, encoder, tmp_path: Path, which: int, place: float, bits: int
):
    struck = tmp_path / "struck"
    shutil.rmtree(struck, ignore_errors=True)
    shutil.copytree(cache, struck)
    path = files(struck)[which]
    numbers = 6 * 2 * 8 * 8 * 8 if path.suffix == ".safetensors" else 0
    flip(path, int(place * (path.stat().st_size - numbers)), bits)
    encoder.encoded = 0
    assert is_right(struck, data, encoder, 2, live)
    assert encoder.encoded == 0


def test_int8_scales_are_covered_too(data, encoder, tmp_path: Path):
    shelf = fill(tmp_path, data, encoder, SIDE, dtype="int8").shelf
    path = shelf.folder / f"{shard_names(shelf.folder)[0]}.safetensors"
    scales, numbers = 6 * 8 * 8 * 4, 6 * 8 * 8 * 8
    row = 64 * 4 + 3
    flip(path, path.stat().st_size - numbers - scales + row)
    (damage,) = verify(tmp_path)
    assert damage.rows == (1,)
    before = shelf.space
    assert repair(tmp_path, [damage], lambda name: encoder).encoded == 1
    assert verify(tmp_path) == []
    (held,) = info(tmp_path)
    assert held.space == before
    assert held.error is not None
    assert 0 < held.error[0] < held.error[1] < 0.02


def test_the_damaged_view_is_named(cache: Path):
    folder = next(path for path in cache.iterdir() if path.is_dir())
    path = folder / f"{shard_names(folder)[0]}.safetensors"
    flip(path, path.stat().st_size - 1)
    (damage,) = verify(cache)
    assert "damaged tokens: view" in damage.what
    assert "5.png" in damage.what


@pytest.mark.parametrize("how", ["cut", "grown", "both manifests", "manifest gone"])
def test_larger_damage(cache: Path, data, encoder, how: str):
    folder = next(path for path in cache.iterdir() if path.is_dir())
    name = shard_names(folder)[0]
    path, beside = folder / f"{name}.safetensors", folder / f"{name}.json"
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "grown":
        path.write_bytes(path.read_bytes() + b"x")
    elif how == "manifest gone":
        beside.unlink()
    else:
        beside.write_text("{}")
        flip(path, 20)
    (damage,) = verify(cache)
    mended = repair(cache, [damage], lambda name: encoder)
    lost = {"cut": 6, "grown": 6, "both manifests": 0, "manifest gone": 0}[how]
    assert (encoder.encoded, mended.encoded) == (lost, lost)
    assert len(mended.dropped) == (how == "both manifests")
    assert verify(cache) == []
    assert is_right(cache, data, encoder, 2)


def test_what_cannot_be_encoded_again_is_dropped_with_the_reason(cache: Path, data, encoder, make_encoder):
    folder = next(path for path in cache.iterdir() if path.is_dir())
    for name in shard_names(folder):
        path = folder / f"{name}.safetensors"
        flip(path, path.stat().st_size - 1)
    data.items[5].image.unlink()
    first, second = verify(cache)
    mended = repair(cache, [first], lambda name: encoder)
    assert mended.encoded == 0
    assert "5.png: cannot read image" in mended.dropped[0]
    Image.new("RGB", (9, 9)).save(data.items[5].image)
    mended = repair(cache, [second], lambda name: make_encoder(1))
    assert "has changed" in mended.dropped[0]
    assert verify(cache) == []
    assert len(FeatureCache(cache).shelf(encoder, SIDE)) == 10


def test_another_encoder_of_the_name_does_not_repair(cache: Path, encoder, make_encoder):
    folder = next(path for path in cache.iterdir() if path.is_dir())
    path = folder / f"{shard_names(folder)[0]}.safetensors"
    flip(path, path.stat().st_size - 1)
    mended = repair(cache, verify(cache), lambda name: make_encoder(1))
    assert "has other weights" in mended.dropped[0]
    assert len(FeatureCache(cache).shelf(encoder, SIDE)) == 11


def test_info_counts(cache: Path, data, encoder):
    fill(cache, data, encoder, SIDE + 4, dtype="int8")
    small, large = sorted(info(cache), key=lambda held: held.space.resolution)
    assert (small.views, small.images, small.shards, small.error) == (12, 6, 2, None)
    assert (large.views, large.images, large.shards) == (6, 6, 1)
    assert large.error is not None
    assert small.size == sum(path.stat().st_size for path in (cache / small.space.key).iterdir())


def test_a_folder_that_is_not_there_is_no_cache(tmp_path: Path):
    for look in (info, verify, prune):
        with pytest.raises(FusionerError, match="there is no feature cache"):
            look(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_prune_drops_images_that_are_gone_or_changed(cache: Path, data, encoder):
    data.items[0].image.unlink()
    pixels = np.asarray(Image.open(data.items[1].image)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(data.items[1].image)
    assert prune(cache, dry_run=True).views == 4
    assert len(FeatureCache(cache).shelf(encoder, SIDE)) == 12
    pruned = prune(cache)
    assert (pruned.views, pruned.kept, pruned.unreachable) == (4, 8, 0)
    assert pruned.size == 4 * 2 * 8 * 8 * 8
    assert verify(cache) == []
    data.items = data.items[2:]
    assert is_right(cache, data, encoder, 2)
    assert prune(cache).views == 0
    assert encoder.encoded <= 8  # is_right encodes live; nothing else


def test_prune_drops_spaces_nobody_wants_and_their_folders(cache: Path, data, encoder, make_encoder):
    other = make_encoder(1)
    fill(cache, data, other, SIDE)
    pruned = prune(cache, lambda space: space.fingerprint == other.fingerprint())
    assert (pruned.views, pruned.kept) == (12, 6)
    (held,) = info(cache)
    assert held.space.fingerprint == other.fingerprint()
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_prune_keeps_images_on_a_disk_that_is_not_there(cache: Path, root: Path):
    away = root.with_name("away")
    root.rename(away)
    pruned = prune(cache)
    assert (pruned.views, pruned.kept, pruned.unreachable) == (0, 12, 12)
    away.rename(root)
    assert prune(cache).unreachable == 0
    root.rename(away)
    assert prune(cache, missing_folders=True).views == 12


def test_prune_leaves_one_of_what_is_there_twice(cache: Path, data, encoder, tmp_path: Path):
    other = tmp_path / "other"
    fill(other, data, encoder, SIDE, views=3)
    (folder,) = [path for path in other.iterdir() if path.is_dir()]
    for path in folder.glob("*.*"):
        shutil.copy(path, cache / folder.name / path.name)
    assert len(FeatureCache(cache).shelf(encoder, SIDE)) == 18
    pruned = prune(cache)
    assert (pruned.views, pruned.kept) == (12, 18)
    assert verify(cache) == []
    assert is_right(cache, data, encoder, 3)


def test_prune_touches_nothing_that_is_not_the_caches(data, encoder, tmp_path: Path):
    """Somebody names the wrong folder."""
    (tmp_path / "project").mkdir()
    for name in ("package.json", f"{'ab' * 8}.json", ".part-1"):
        (tmp_path / "project" / name).write_text("{}")
    (tmp_path / "notes.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert prune(tmp_path).views == 0
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != ".lock"] == before


def test_repair_and_prune_wait_for_builders_to_end(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fusioner.features.locks._PATIENCE", 0.05)
    with Presence(cache) as builder:
        builder.together()
        for work in (lambda: prune(cache), lambda: repair(cache, [], lambda name: pytest.fail("not needed"))):
            with pytest.raises(FusionerError, match="is being written to by another process"):
                work()
    assert prune(cache).kept == 12


def test_a_reader_keeps_reading_while_its_shard_is_replaced(cache: Path, data, encoder):
    reader = fill(cache, data, encoder, SIDE, views=2)
    expected = reader.batch([(item, 1) for item in data.items])[0]
    first = reader.tokens(data.items[0], 0)[0]
    data.items[5].image.unlink()
    prune(cache)  # both shards lose a row and get new names
    assert torch.equal(reader.tokens(data.items[0], 0)[0], first)
    assert torch.equal(reader.batch([(item, 1) for item in data.items])[0], expected)
    reader.shelf.refresh()
    assert len(reader.shelf) == 10


def test_what_was_lost_is_built_again(cache: Path, data, encoder):
    folder = next(path for path in cache.iterdir() if path.is_dir())
    name = shard_names(folder)[1]
    manifest = read_manifest(folder, name)
    assert manifest is not None
    remove_shard(folder, name)
    fill(cache, data, encoder, SIDE, views=2)
    assert encoder.encoded == len(manifest.entries) == 6
    assert is_right(cache, data, encoder, 2)


def unreadable(path: Path) -> Callable[[], None]:
    path.chmod(0)
    return lambda: path.chmod(0o755)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that bind")
def test_a_folder_that_may_not_be_read_is_an_error(cache: Path, data, encoder):
    undo = unreadable(next(path for path in cache.iterdir() if path.is_dir()))
    with pytest.raises(FusionerError, match="cannot read the feature cache"):
        fill(cache, data, encoder, SIDE)
    undo()
