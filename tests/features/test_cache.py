"""What is served is what was asked for: never stale, never of another encoder."""

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
from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.features.cache import FeatureCache
from fusioner.features.dataset import LiveSource
from fusioner.features.fill import fill
from fusioner.features.shard import read_manifest, remove_shard, shard_names
from fusioner.features.space import PREPROCESSING, VIEWS, Space, default_folder
from fusioner.image import resize_square

SIDE = 32


def encoded_by(encoder, work: Callable[[], object]) -> int:
    """How many pictures the encoder was shown meanwhile."""
    before = encoder.encoded
    work()
    return encoder.encoded - before


def test_nothing_is_encoded_twice(data: SegmentationData, encoder, tmp_path: Path):
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE, views=2)) == 12
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE, views=2)) == 0
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE, views=1)) == 0
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE, views=3)) == 6


def test_a_changed_byte_of_an_image_is_another_image(data: SegmentationData, encoder, tmp_path: Path):
    fill(tmp_path, data, encoder, SIDE)
    path, stat = data.items[2].image, data.items[2].image.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[3, 3] += 90
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its time tells nothing
    cached: list = []
    assert encoded_by(encoder, lambda: cached.append(fill(tmp_path, data, encoder, SIDE))) == 1
    live = LiveSource(data, encoder, SIDE)
    for item in data.items:
        assert torch.equal(cached[0].tokens(item, 0)[0], live.tokens(item, 0)[0].half().float())


@pytest.mark.parametrize("change", ["weights", "mean", "std", "resolution", "dtype"])
def test_another_encoder_size_or_type_is_encoded_anew(data, encoder, make_encoder, tmp_path: Path, change: str):
    fill(tmp_path, data, encoder, SIDE)
    other, side, dtype = make_encoder(1 if change == "weights" else 0), SIDE, "fp16"
    if change == "mean":
        other.mean = (0.4, 0.5, 0.5)
    elif change == "std":
        other.std = (0.5, 0.5, 0.4)
    elif change == "resolution":
        side = 36
    elif change == "dtype":
        dtype = "int8"
    assert encoded_by(other, lambda: fill(tmp_path, data, other, side, dtype=dtype)) == len(data.items)
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE)) == 0  # and both stay


def test_another_name_of_the_same_weights_shares(data, encoder, make_encoder, tmp_path: Path):
    fill(tmp_path, data, encoder, SIDE)
    twin = make_encoder(0)
    twin.name = "counting@/elsewhere"
    assert encoded_by(twin, lambda: fill(tmp_path, data, twin, SIDE)) == 0


def test_the_recipes_are_part_of_the_key(encoder):
    space = Space.of(encoder, SIDE)
    keys = {replace(space, **change).key for change in ({}, {"views": "new"}, {"preprocessing": "new"})}
    assert len(keys) == 3


def test_the_pixels_are_still_those_the_key_names():
    """When this fails the views or the squashing have changed: raise the numbers in features/space.py, then these."""
    y, x, c = np.mgrid[0:40, 0:50, 0:3]
    rgb = ((y * (3 + c) + x * (5 - c) + 40 * c) % 251).astype(np.uint8)
    seen = [view(rgb, rgb[..., 0], number, 12345)[0] for number in (1, 2, 3)]
    assert [one.shape[:2] for one in seen] == [(40, 50), (36, 34), (36, 50)]
    expected = [
        [[205, 208, 211], [142, 183, 227]],
        [[36, 107, 119], [255, 255, 50]],
        [[255, 255, 255], [217, 240, 0]],
    ]
    # By at most 1: processors round differently.
    np.testing.assert_allclose([one[[5, 20], [7, 30]].astype(int) for one in seen], expected, rtol=0, atol=1)
    assert VIEWS.endswith(", 1")
    small = resize_square(rgb, 16)[:, [3, 11], [2, 9]] * 255
    np.testing.assert_allclose(small, [[62, 231], [102, 19], [143, 58]], rtol=0, atol=1)
    assert PREPROCESSING.endswith(", 1")


def test_shards_are_plain_safetensors_with_their_manifest(data, encoder, tmp_path: Path):
    for dtype in ("fp16", "int8"):
        shelf = fill(tmp_path, data, encoder, SIDE, views=2, dtype=dtype).shelf
        (name,) = shard_names(shelf.folder)
        manifest = read_manifest(shelf.folder, name)
        assert manifest is not None
        with safe_open(shelf.folder / f"{name}.safetensors", "pt") as file:
            assert set(file.keys()) == ({"tokens"} if dtype == "fp16" else {"tokens", "scales"})
            assert file.metadata()["manifest"] == manifest.text
            tokens = file.get_tensor("tokens").float()
            if dtype == "int8":
                tokens *= file.get_tensor("scales").unsqueeze(1)
        keys = [entry[:2] for entry in manifest.entries]
        assert torch.equal(shelf.read(keys), tokens)
        assert {Path(entry.image) for entry in manifest.entries} == {item.image for item in data.items}


def test_reading_maps_the_file_and_copies_once(data, encoder, tmp_path: Path):
    cached = fill(tmp_path, data, encoder, SIDE)
    key = (cached.digests["0"], 0)
    stored = cached.shelf.get(*key)
    assert isinstance(stored, torch.Tensor)
    other = cached.shelf.get(cached.digests["1"], 0)
    assert isinstance(other, torch.Tensor)
    assert stored.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()  # both lie in the mapped file
    before = stored.clone()
    stored.zero_()  # private to this process: the file stays
    assert torch.equal(FeatureCache(tmp_path).shelf(encoder, SIDE).read([key], torch.float16)[0], before)


def test_a_reader_sees_what_others_add_and_remove(data, encoder, tmp_path: Path):
    reader = FeatureCache(tmp_path).shelf(encoder, SIDE)
    assert len(reader) == 0
    source = fill(tmp_path, data, encoder, SIDE)
    key = (source.digests["0"], 0)
    assert key not in reader
    reader.refresh()
    assert key in reader
    fill(tmp_path, data, encoder, SIDE, views=2)
    for name in shard_names(reader.folder)[:]:
        if any(entry.view == 0 for entry in read_manifest(reader.folder, name).entries):  # pyright: ignore
            remove_shard(reader.folder, name)
    assert reader.get(*key) is None  # found out when the file is opened
    assert reader.get(key[0], 1) is not None  # and the rest was taken in


def test_a_file_cut_short_is_not_read(data, encoder, tmp_path: Path):
    cached = fill(tmp_path, data, encoder, SIDE)
    path = cached.shelf.folder / f"{shard_names(cached.shelf.folder)[0]}.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FusionerError, match=r"feature cache is damaged .* --repair"):
        cached.tokens(data.items[0], 0)
    assert len(FeatureCache(tmp_path).shelf(encoder, SIDE)) == 0
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE)) == len(data.items)


def test_tokens_on_demand_are_those_of_a_build_and_are_kept(data, encoder, tmp_path: Path):
    cached = fill(tmp_path, data, encoder, SIDE)
    cache = FeatureCache(tmp_path)
    for item in data.items:
        tokens = cache.tokens(encoder, item.image, SIDE)
        assert tokens.shape == (1, encoder.dim, 8, 8)
        assert torch.equal(tokens[0].float(), cached.tokens(item, 0)[0])
    before = encoder.encoded
    first = [cache.tokens(encoder, item.image, SIDE + 4) for item in data.items]
    again = [cache.tokens(encoder, item.image, SIDE + 4) for item in data.items]
    assert encoder.encoded - before == len(data.items)  # also while they are not on disk yet
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    cache.close()
    assert encoded_by(encoder, lambda: fill(tmp_path, data, encoder, SIDE + 4)) == 0


def test_tokens_on_demand_are_written_when_python_ends(data, root: Path, encoder, tmp_path: Path):
    script = f"""
        import sys, importlib.util
        spec = importlib.util.spec_from_file_location("helpers", {str(Path(__file__).with_name("conftest.py"))!r})
        helpers = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helpers)
        from pathlib import Path
        from fusioner.features.cache import FeatureCache
        cache = FeatureCache({str(tmp_path / "cache")!r})
        for path in sorted(Path({str(root / "images")!r}).iterdir()):
            cache.tokens(helpers.CountingEncoder(), path, {SIDE})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert encoded_by(encoder, lambda: fill(tmp_path / "cache", data, encoder, SIDE)) == 0


def test_the_default_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FUSIONER_CACHE", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("FUSIONER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert default_folder() == tmp_path / "xdg" / "fusioner" / "features"
