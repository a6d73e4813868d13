"""Building of a cache: rejected settings, and the entries written."""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.features.build import (
    ELSEWHERE,
    ENCODED,
    HEADER_BYTES,
    cache_features,
    encode_missing,
    find_missing,
    free_bytes,
)
from fusioner.features.cache import FeatureCache, entry_files
from fusioner.io import format_bytes

SIDE = 32


def test_the_plan_counts_missing_views_and_bytes(data: SegmentationData, encoder, tmp_path: Path):
    cache = FeatureCache(tmp_path, encoder, SIDE)
    assert len(find_missing(cache, data.items, views=3)[1]) == 18
    cache_features(tmp_path, data, encoder, SIDE, views=2)
    after = find_missing(cache, data.items, views=3)[1]
    assert len(after) == 6
    assert {entry.view for entry in after} == {2}
    used = sum(path.stat().st_size for path in cache.folder.iterdir())
    assert used <= 12 * (cache.key.entry_bytes + HEADER_BYTES)  # the announced size is an upper bound
    assert cache.key.entry_bytes == 2 * 8 * 8 * 8


def test_the_size_is_printed_before_encoding(data, encoder, tmp_path: Path):
    output: list[tuple[str, int]] = []
    cache_features(tmp_path, data, encoder, SIDE, views=2, say=lambda line: output.append((line, encoder.encoded)))
    (first, encoded), (last, _) = output
    assert encoded == 0
    assert "0 views are in" in first
    assert "12 are missing and need 21.5 kB of" in first
    assert last.startswith("encoded 12 views in")
    output.clear()
    cache_features(tmp_path, data, encoder, SIDE, say=lambda line: output.append((line, 0)))
    assert [line.split(", ")[-1] for line, _ in output] == ["none is missing"]


def test_a_full_disk_is_refused_before_encoding(data, encoder, full_disk: Path):
    with pytest.raises(FusionerError, match=r"96 views need .* free: free some space"):
        cache_features(full_disk / "cache", data, encoder, 256, views=16)
    assert encoder.encoded == 0
    cache_features(full_disk / "cache", data, encoder, SIDE, views=1)  # a smaller cache fits
    assert encoder.encoded == 6


def test_a_disk_that_fills_up_is_an_error_and_leaves_no_partial_entry(data, encoder, full_disk: Path):
    cache = FeatureCache(full_disk / "cache", encoder, 64)
    _, missing = find_missing(cache, data.items, views=20)
    (full_disk / "other").write_bytes(bytes(free_bytes(full_disk) - 40_000))
    with pytest.raises(FusionerError, match="no space left"):
        list(encode_missing(cache, missing))
    (full_disk / "other").unlink()
    assert list((full_disk / "cache").rglob(".part-*")) == []
    cached = cache_features(full_disk / "cache", data, encoder, 64, views=20)
    assert len(entry_files(cached.cache.folder)) == 120


def test_a_folder_that_cannot_be_written_is_an_error(data, encoder, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FusionerError, match=r"cannot write .* is a file"):
        cache_features(tmp_path / "file" / "cache", data, encoder, SIDE)


def test_a_broken_image_is_reported_and_the_others_are_cached(data, encoder, tmp_path: Path):
    data.items[1].image.write_bytes(data.items[1].image.read_bytes()[:90])
    data.items[4].image.write_text("no picture")
    with pytest.raises(FusionerError, match=r"2 images could not be encoded .*1\.png.*4\.png") as error:
        cache_features(tmp_path / "cache", data, encoder, SIDE, views=2)
    assert "corrupt" in str(error.value)
    assert encoder.encoded == 8
    data.items = [item for item in data.items if item.id not in "14"]
    cache_features(tmp_path / "cache", data, encoder, SIDE, views=2)
    assert encoder.encoded == 8


def test_a_missing_image_is_an_error_at_once(data, encoder, tmp_path: Path):
    data.items[3].image.unlink()
    with pytest.raises(FusionerError, match=r"cannot read image .*3\.png"):
        cache_features(tmp_path / "cache", data, encoder, SIDE)
    assert encoder.encoded == 0


def test_an_image_changed_after_planning_is_not_stored_under_the_old_key(data, encoder, tmp_path: Path):
    cache = FeatureCache(tmp_path, encoder, SIDE)
    digests, missing = find_missing(cache, data.items)
    shutil.copy(data.items[0].image, data.items[1].image)
    outcomes = list(encode_missing(cache, missing))
    assert outcomes.count(ENCODED) == 5
    (broken,) = set(outcomes) - {ENCODED}
    assert "1.png has changed" in broken
    assert not cache.contains(digests["1"], 0)


def test_there_is_one_outcome_per_missing_view(data, encoder, tmp_path: Path):
    for size in (1, 4, 32):
        cache = FeatureCache(tmp_path / str(size), encoder, SIDE)
        _, missing = find_missing(cache, data.items, 3)
        assert list(encode_missing(cache, missing, size)) == [ENCODED] * 18


def test_identical_files_are_encoded_once(data, root: Path, encoder, tmp_path: Path):
    for part in ("images", "masks"):
        shutil.copy(root / part / "0.png", root / part / "6.png")
    from fusioner.data.folder import folder

    cached = cache_features(tmp_path / "cache", folder(root), encoder, SIDE)
    assert encoder.encoded == 6
    again = folder(root).by_id
    assert torch.equal(*cached.batch([(again["0"], 0), (again["6"], 0)])[0])


@pytest.mark.parametrize(("what", "message"), [("shape", "promise"), ("nan", "not finite")])
def test_an_encoder_with_invalid_output_is_refused(data, encoder, tmp_path: Path, what: str, message: str):
    forward = encoder.forward
    if what == "shape":
        encoder.forward = lambda images: forward(images)[..., :-1]
    else:
        encoder.forward = lambda images: forward(images) * float("nan")
    with pytest.raises(FusionerError, match=message):
        cache_features(tmp_path, data, encoder, SIDE)
    cache = FeatureCache(tmp_path, encoder, SIDE)
    assert entry_files(cache.folder) == []


def test_ctrl_c_leaves_finished_entries(data, encoder, tmp_path: Path):
    cache = FeatureCache(tmp_path, encoder, SIDE)

    def track(items: Sequence, what: str) -> Iterator:
        for number, item in enumerate(items):
            if what == "encoding views" and number == 4:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        cache_features(tmp_path, data, encoder, SIDE, batch_size=2, track=track)
    assert len(entry_files(cache.folder)) == 4


def test_fewer_views_than_one_are_refused(data, encoder, tmp_path: Path):
    with pytest.raises(FusionerError, match="at least 1 view, not 0"):
        cache_features(tmp_path, data, encoder, SIDE, views=0)


def test_a_resolution_without_room_for_a_token_is_refused(data, encoder, tmp_path: Path):
    for side in (3, 0, -5):
        with pytest.raises(FusionerError, match=f"{side} px are too few"):
            cache_features(tmp_path, data, encoder, side)


def test_stale_temporary_files_are_removed_and_other_files_are_not(data, encoder, tmp_path: Path):
    folder = FeatureCache(tmp_path, encoder, SIDE).folder
    other = tmp_path / "somebody's"
    for place in (folder, other):
        place.mkdir()
        for name in (".part-00112233.safetensors", "notes.json"):
            (place / name).write_text("{}")
            os.utime(place / name, (0, 0))
    cache_features(tmp_path, data, encoder, SIDE)
    assert sorted(path.name for path in other.iterdir()) == [".part-00112233.safetensors", "notes.json"]
    assert not (folder / ".part-00112233.safetensors").exists()
    assert (folder / "notes.json").exists()


def test_recent_temporary_files_of_other_processes_are_kept(data, encoder, tmp_path: Path):
    folder = FeatureCache(tmp_path, encoder, SIDE).folder
    folder.mkdir()
    (folder / ".part-00112233.safetensors").write_text("")
    cache_features(tmp_path, data, encoder, SIDE)
    assert (folder / ".part-00112233.safetensors").exists()


def test_two_builders_share_the_work(data, encoder, make_encoder, tmp_path: Path):
    other = make_encoder(0)
    _, missing = find_missing(FeatureCache(tmp_path, encoder, SIDE), data.items, 3)
    with ThreadPoolExecutor(2) as pool:
        caches = [FeatureCache(tmp_path, each, SIDE) for each in (encoder, other)]
        outcomes = list(pool.map(lambda cache: list(encode_missing(cache, missing, batch_size=2)), caches))
    assert all(len(outcome) == 18 and set(outcome) <= {ENCODED, ELSEWHERE} for outcome in outcomes)
    assert 18 <= encoder.encoded + other.encoded <= 36
    assert len(entry_files(caches[0].folder)) == 18


def test_sizes_are_formatted():
    assert [format_bytes(n) for n in (0, 999, 1000, 1_234_567, 5.6e12, 1e16)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.2 MB",
        "5.6 TB",
        "10000.0 TB",
    ]
