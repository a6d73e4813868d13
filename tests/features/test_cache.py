"""Test that cached tokens are those of the requested image, encoder and resolution, never stale."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from fusioner.data.augment import view
from fusioner.data.base import Item, SegmentationData
from fusioner.features.build import cache_features
from fusioner.features.cache import (
    PREPROCESSING,
    VIEWS,
    CacheKey,
    FeatureCache,
    entry_files,
    find_damage,
)
from fusioner.features.dataset import CachedSource, LiveSource, TokenSource
from fusioner.image import resize_square
from fusioner.io import default_cache_folder

SIDE = 32


def first_tokens(source: TokenSource, item: Item) -> torch.Tensor:
    return source.batch([(item, 0)])[0][0]


def encoded_by(encoder, work: Callable[[], object]) -> int:
    """Return the number of pictures encoded by a call."""
    before = encoder.encoded
    work()
    return encoder.encoded - before


def test_cached_views_are_not_encoded_again(data: SegmentationData, encoder, tmp_path: Path):
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE, views=2)) == 12
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE, views=2)) == 0
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE, views=1)) == 0
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE, views=3)) == 6


def test_a_changed_byte_of_an_image_is_another_image(data: SegmentationData, encoder, tmp_path: Path):
    cache_features(tmp_path, data, encoder, SIDE)
    path, stat = data.items[2].image, data.items[2].image.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[3, 3] += 90
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # with the modification time unchanged
    cached: list = []
    assert encoded_by(encoder, lambda: cached.append(cache_features(tmp_path, data, encoder, SIDE))) == 1
    live = LiveSource(data, encoder, SIDE)
    for item in data.items:
        assert torch.equal(first_tokens(cached[0], item), first_tokens(live, item).half().float())


@pytest.mark.parametrize("change", ["weights", "mean", "std", "resolution"])
def test_another_encoder_or_resolution_is_encoded_anew(data, encoder, make_encoder, tmp_path: Path, change: str):
    cache_features(tmp_path, data, encoder, SIDE)
    other, side = make_encoder(1 if change == "weights" else 0), SIDE
    if change == "mean":
        other.mean = (0.4, 0.5, 0.5)
    elif change == "std":
        other.std = (0.5, 0.5, 0.4)
    elif change == "resolution":
        side = 36
    assert encoded_by(other, lambda: cache_features(tmp_path, data, other, side)) == len(data.items)
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE)) == 0  # both remain cached


def test_another_name_of_the_same_weights_shares(data, encoder, make_encoder, tmp_path: Path):
    cache_features(tmp_path, data, encoder, SIDE)
    renamed = make_encoder(0)
    renamed.name = "counting@/elsewhere"
    assert encoded_by(renamed, lambda: cache_features(tmp_path, data, renamed, SIDE)) == 0


def test_augmentation_parameters_are_part_of_the_key(encoder):
    key = CacheKey.of(encoder, SIDE)
    names = {replace(key, **change).name for change in ({}, {"views": "new"}, {"preprocessing": "new"})}
    assert len(names) == 3


def test_augmented_pixels_are_pinned():
    """If this fails, views or resizing have changed: update the versions in features/cache.py, then these values."""
    y, x, c = np.mgrid[0:40, 0:50, 0:3]
    rgb = ((y * (3 + c) + x * (5 - c) + 40 * c) % 251).astype(np.uint8)
    seen = [view(rgb, number, 12345) for number in (1, 2, 3)]
    assert [picture.shape[:2] for picture in seen] == [(40, 50), (36, 34), (36, 50)]
    expected = [
        [[205, 208, 211], [142, 183, 227]],
        [[36, 107, 119], [255, 255, 50]],
        [[255, 255, 255], [217, 240, 0]],
    ]
    # Allow a difference of 1, because processors round differently.
    np.testing.assert_allclose([picture[[5, 20], [7, 30]].astype(int) for picture in seen], expected, rtol=0, atol=1)
    assert VIEWS.endswith(", 1")
    small = resize_square(rgb, 16)[:, [3, 11], [2, 9]] * 255
    np.testing.assert_allclose(small, [[62, 231], [102, 19], [143, 58]], rtol=0, atol=1)
    assert PREPROCESSING.endswith(", 1")


def test_entries_are_plain_safetensors_with_their_metadata(data, encoder, tmp_path: Path):
    cached = cache_features(tmp_path, data, encoder, SIDE, views=2)
    files = entry_files(cached.cache.folder)
    assert len(files) == 12
    for item in data.items:
        path = cached.cache.path(cached.digests[item.id], 1)
        assert path in files
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == {"tokens"}
            assert torch.equal(file.get_tensor("tokens").float(), cached.batch([(item, 1)])[0][0])
            assert Path(file.metadata()["image"]) == item.image


def test_readers_see_entries_added_and_removed_by_others(data, encoder, tmp_path: Path):
    reader = FeatureCache(tmp_path, encoder, SIDE)
    assert entry_files(reader.folder) == []
    digest = cache_features(tmp_path, data, encoder, SIDE).digests["0"]
    assert reader.contains(digest, 0)
    assert reader.get(digest, 0) is not None
    cache_features(tmp_path, data, encoder, SIDE, views=2)
    for path in entry_files(reader.folder):
        if path.stem.endswith("-0"):
            path.unlink()
    assert reader.get(digest, 0) is None
    assert reader.get(digest, 1) is not None


@pytest.mark.parametrize("kind", ["cut", "empty", "zeros", "grown", "flipped", "renamed"])
def test_a_damaged_entry_is_not_read_but_encoded_anew(data, encoder, tmp_path: Path, kind: str):
    cached = cache_features(tmp_path, data, encoder, SIDE)
    expected = first_tokens(cached, data.items[0])
    path, other = (cached.cache.path(cached.digests[name], 0) for name in "01")
    raw = path.read_bytes()
    path.write_bytes(
        {
            "cut": raw[:-10],
            "empty": b"",
            "zeros": bytes(len(raw)),
            "grown": raw + b"x",
            "flipped": raw[:-1] + bytes([raw[-1] ^ 1]),
            "renamed": other.read_bytes(),
        }[kind]
    )
    assert FeatureCache(tmp_path, encoder, SIDE).get(cached.digests["0"], 0) is None
    fresh = CachedSource(FeatureCache(tmp_path, encoder, SIDE), data, cached.digests)
    assert encoded_by(encoder, lambda: fresh.batch([(data.items[0], 0)])) == 1
    assert find_damage(path) is None
    assert torch.equal(first_tokens(fresh, data.items[0]), expected)
    if kind not in ("flipped", "renamed"):  # files of the right size are detected on reading
        path.write_bytes(raw[:-10])
        assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE)) == 1


def test_an_entry_cut_short_after_it_was_read_is_encoded_anew(data, encoder, tmp_path: Path):
    cached = cache_features(tmp_path, data, encoder, SIDE)
    expected = first_tokens(cached, data.items[0])
    path = cached.cache.path(cached.digests["0"], 0)
    path.write_bytes(path.read_bytes()[:-10])
    assert encoded_by(encoder, lambda: torch.equal(first_tokens(cached, data.items[0]), expected)) == 1


def test_tokens_on_demand_are_those_of_a_build_and_are_kept(data, encoder, tmp_path: Path):
    cached = cache_features(tmp_path, data, encoder, SIDE)
    cache = FeatureCache(tmp_path, encoder, SIDE)
    for item in data.items:
        tokens = cache.tokens(item.image)
        assert tokens.shape == (encoder.dim, 8, 8)
        assert torch.equal(tokens.float(), first_tokens(cached, item))
    before = encoder.encoded
    cache = FeatureCache(tmp_path, encoder, SIDE + 4)
    first = [cache.tokens(item.image) for item in data.items]
    again = [cache.tokens(item.image) for item in data.items]
    assert encoder.encoded - before == len(data.items)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert encoded_by(encoder, lambda: cache_features(tmp_path, data, encoder, SIDE + 4)) == 0


def test_tokens_on_demand_are_kept_for_other_processes(data, root: Path, encoder, tmp_path: Path):
    script = f"""
        import sys, importlib.util
        spec = importlib.util.spec_from_file_location("helpers", {str(Path(__file__).with_name("conftest.py"))!r})
        helpers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        from pathlib import Path
        from fusioner.features.cache import FeatureCache
        cache = FeatureCache({str(tmp_path / "cache")!r}, helpers.CountingEncoder(), {SIDE})
        for path in sorted(Path({str(root / "images")!r}).iterdir()):
            cache.tokens(path)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert encoded_by(encoder, lambda: cache_features(tmp_path / "cache", data, encoder, SIDE)) == 0


def test_the_default_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FUSIONER_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("FUSIONER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_cache_folder() == tmp_path / "xdg" / "fusioner" / "features"
