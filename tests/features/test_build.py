"""Building: what it needs is said first, what cannot be done is refused, what is done is kept."""

import shutil
import threading
from pathlib import Path

import pytest
import torch

from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.features.build import Builder
from fusioner.features.cache import FeatureCache
from fusioner.features.fill import fill
from fusioner.features.locks import Claims, Presence
from fusioner.features.plan import free_bytes, plan, readable
from fusioner.features.shard import shard_names

SIDE = 32


def test_the_plan_counts_what_is_missing_and_how_much_it_takes(data: SegmentationData, encoder, tmp_path: Path):
    shelf = FeatureCache(tmp_path).shelf(encoder, SIDE)
    first = plan(shelf, data.items, views=3)
    assert (first.missing, first.present) == (18, 0)
    fill(tmp_path, data, encoder, SIDE, views=2)
    after = plan(shelf, data.items, views=3)
    assert (after.missing, after.present) == (6, 12)
    assert {job.views for job in after.jobs} == {(2,)}
    used = sum(path.stat().st_size for path in shelf.folder.iterdir())
    assert used <= first.need * 12 / 18  # what was promised is not exceeded
    assert first.need == 18 * (2 * 8 * 8 * 8 + 768)


def test_what_is_needed_is_said_before_anything_is_encoded(data, encoder, tmp_path: Path):
    said: list[tuple[str, int]] = []
    fill(tmp_path, data, encoder, SIDE, views=2, say=lambda line: said.append((line, encoder.encoded)))
    (first, encoded), (last, _) = said
    assert encoded == 0
    assert "0 views are in" in first
    assert "12 are missing and need 21.5 kB of" in first
    assert last.startswith("encoded 12 views in")
    said.clear()
    fill(tmp_path, data, encoder, SIDE, say=lambda line: said.append((line, 0)))
    assert [line.split(", ")[-1] for line, _ in said] == ["none is missing"]


def test_a_disk_without_room_is_refused_before_anything_is_encoded(data, encoder, full_disk: Path):
    with pytest.raises(FusionerError, match=r"96 views need .* free: free some space"):
        fill(full_disk / "cache", data, encoder, 256, views=16)
    assert encoder.encoded == 0
    fill(full_disk / "cache", data, encoder, SIDE, views=1)  # what fits is done
    assert encoder.encoded == 6


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_leaves_nothing_half_written(data, encoder, full_disk: Path):
    shelf = FeatureCache(full_disk / "cache").shelf(encoder, 64)
    todo = plan(shelf, data.items, views=20)
    (full_disk / "other").write_bytes(bytes(free_bytes(full_disk) - 40_000))
    with pytest.raises(FusionerError, match="no space left"):
        Builder(shelf, encoder).run(todo)
    (full_disk / "other").unlink()
    assert list((full_disk / "cache").rglob(".part-*")) == []
    cached = fill(full_disk / "cache", data, encoder, 64, views=20)
    assert len(cached.shelf) == 120


def test_a_folder_that_cannot_be_written_is_an_error(data, encoder, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FusionerError, match=r"cannot write .* is a file"):
        fill(tmp_path / "file" / "cache", data, encoder, SIDE)


def test_a_broken_image_is_named_and_all_others_are_kept(data, encoder, tmp_path: Path):
    data.items[1].image.write_bytes(data.items[1].image.read_bytes()[:90])
    data.items[4].image.write_text("no picture")
    with pytest.raises(FusionerError, match=r"2 images could not be encoded .*1\.png.*4\.png") as error:
        fill(tmp_path / "cache", data, encoder, SIDE, views=2)
    assert "damaged" in str(error.value)
    assert encoder.encoded == 8
    data.items = [item for item in data.items if item.id not in "14"]
    fill(tmp_path / "cache", data, encoder, SIDE, views=2)
    assert encoder.encoded == 8


def test_a_missing_image_is_an_error_at_once(data, encoder, tmp_path: Path):
    data.items[3].image.unlink()
    with pytest.raises(FusionerError, match=r"cannot read image .*3\.png"):
        fill(tmp_path / "cache", data, encoder, SIDE)
    assert encoder.encoded == 0


def test_an_image_that_changes_between_plan_and_build_is_not_stored_under_its_old_name(data, encoder, tmp_path: Path):
    shelf = FeatureCache(tmp_path).shelf(encoder, SIDE)
    todo = plan(shelf, data.items)
    shutil.copy(data.items[0].image, data.items[1].image)
    report = Builder(shelf, encoder).run(todo)
    assert report.encoded == 5
    assert len(report.broken) == 1
    assert "1.png has changed" in report.broken[0]
    assert (todo.digests["1"], 0) not in shelf


def test_every_missing_view_ticks_once(data, encoder, tmp_path: Path):
    for size in (1, 4, 32):
        shelf = FeatureCache(tmp_path / str(size)).shelf(encoder, SIDE)
        ticks: list[int] = []
        report = Builder(shelf, encoder, size, tick=lambda ticks=ticks: ticks.append(1)).run(plan(shelf, data.items, 3))
        assert (len(ticks), report.encoded) == (18, 18)


def test_a_picture_that_is_there_under_two_names_is_encoded_once(data, root: Path, encoder, tmp_path: Path):
    for part in ("images", "masks"):
        shutil.copy(root / part / "0.png", root / part / "6.png")
    from fusioner.data.folder import folder

    cached = fill(tmp_path / "cache", folder(root), encoder, SIDE)
    assert encoder.encoded == 6
    again = folder(root).by_id
    assert torch.equal(cached.tokens(again["0"], 0)[0], cached.tokens(again["6"], 0)[0])


@pytest.mark.parametrize(("what", "message"), [("shape", "promise"), ("nan", "not finite")])
def test_an_encoder_that_breaks_its_word_is_refused(data, encoder, tmp_path: Path, what: str, message: str):
    forward = encoder.forward
    if what == "shape":
        encoder.forward = lambda images: forward(images)[..., :-1]
    else:
        encoder.forward = lambda images: forward(images) * float("nan")
    with pytest.raises(FusionerError, match=message):
        fill(tmp_path, data, encoder, SIDE)
    shelf = FeatureCache(tmp_path).shelf(encoder, SIDE)
    assert shard_names(shelf.folder) == []


def test_ctrl_c_keeps_what_is_encoded(data, encoder, tmp_path: Path):
    shelf, ticks = FeatureCache(tmp_path).shelf(encoder, SIDE), []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Builder(shelf, encoder, batch_size=2, tick=tick).run(plan(shelf, data.items))
    shelf.refresh()
    assert len(shelf) == 4


def test_fewer_views_than_one_are_refused(data, encoder, tmp_path: Path):
    with pytest.raises(FusionerError, match="at least 1 view, not 0"):
        fill(tmp_path, data, encoder, SIDE, views=0)


def test_a_resolution_without_room_for_a_token_is_refused(data, encoder, tmp_path: Path):
    for side in (3, 0, -5):
        with pytest.raises(FusionerError, match=f"{side} px are too few"):
            fill(tmp_path, data, encoder, side)


def test_what_killed_builders_left_is_swept_by_the_next_but_foreign_files_stay(data, encoder, tmp_path: Path):
    folder = FeatureCache(tmp_path).shelf(encoder, SIDE).folder
    other = tmp_path / "somebody's"
    for place in (folder, other):
        place.mkdir()
        for name in (".part-00112233.safetensors", f"{'ab' * 8}.json", "notes.json"):
            (place / name).write_text("{}")
    fill(tmp_path, data, encoder, SIDE)
    assert sorted(path.name for path in other.iterdir()) == sorted(
        [".part-00112233.safetensors", f"{'ab' * 8}.json", "notes.json"]
    )
    assert not (folder / ".part-00112233.safetensors").exists()
    assert not (folder / f"{'ab' * 8}.json").exists()
    assert (folder / "notes.json").exists()


def test_nothing_is_swept_while_another_writer_is_there(data, encoder, tmp_path: Path):
    folder = FeatureCache(tmp_path).shelf(encoder, SIDE).folder
    folder.mkdir()
    (folder / ".part-00112233.safetensors").write_text("")
    with Presence(tmp_path) as other:
        other.together()
        fill(tmp_path, data, encoder, SIDE)
    assert (folder / ".part-00112233.safetensors").exists()


def test_a_builder_waits_for_a_repair_and_complains_when_it_lasts(data, encoder, tmp_path: Path, monkeypatch):
    with Presence(tmp_path) as other:
        other.require_alone()
        timer = threading.Timer(0.3, lambda: other.together())
        timer.start()
        fill(tmp_path, data, encoder, SIDE)
        timer.join()
    monkeypatch.setattr("fusioner.features.locks._PATIENCE", 0.05)
    with Presence(tmp_path) as other:
        other.require_alone()
        with pytest.raises(FusionerError, match="is being repaired or pruned"):
            fill(tmp_path, data, encoder, SIDE, views=2)


def test_a_system_without_file_locks_builds_all_the_same(data, encoder, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fusioner.features.locks.fcntl", None)
    assert len(fill(tmp_path, data, encoder, SIDE, views=2).shelf) == 12
    with Claims(tmp_path) as claims:
        assert claims.claim("ab" * 32)
        claims.release("ab" * 32)


def test_bytes_for_people():
    assert [readable(n) for n in (0, 999, 1000, 1_234_567, 5.6e12, 1e16)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "1.2 MB",
        "5.6 TB",
        "10000.0 TB",
    ]
