"""The rows and files that a worker writes for a shard."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco

from fusioner.batch.plan import CrashLog, make_plan
from fusioner.batch.run import BatchJob
from fusioner.batch.worker import Worker, peak_memory
from fusioner.errors import FusionerError
from fusioner.loading import load, runs_on_torch
from fusioner.options import InferenceOptions

MakeJob = Callable[..., BatchJob]


def do_all(job: BatchJob, size: int = 8) -> list[dict[str, Any]]:
    plan = make_plan(job.source, job.out, size, {})
    worker = Worker(job)
    for number in range(plan.shards):
        worker.run(number)
    return rows(job.out)


def rows(out: Path) -> list[dict[str, Any]]:
    return ds.dataset(out / "shards").to_table().sort_by("index").to_pylist()


def test_rows_equal_the_segmenters_results(photos: Path, make_job: MakeJob) -> None:
    job = make_job(photos, formats=("mask",))
    found = do_all(job)
    assert [row["index"] for row in found] == list(range(30))
    segmenter = Worker(job).segmenter
    bad = {row["image"]: row["error"] for row in found if row["error"]}
    assert bad.keys() == {"b/07.jpg", "b/12.jpg"}
    assert bad["b/12.jpg"].endswith("is empty (0 bytes)")
    for row in (row for row in found if not row["error"]):
        result = segmenter(photos / row["image"], job.labels)
        assert (row["width"], row["height"]) == (result.width, result.height)
        assert [segment["label"] for segment in row["segments"]] == list(result.found)
        for segment in row["segments"]:
            encoded: Any = {"size": [row["height"], row["width"]], "counts": segment["rle"].encode()}
            assert np.array_equal(coco.decode(encoded).astype(bool), result.mask(segment["label"]))
            assert segment["area"] == result.areas[segment["label"]]
            assert tuple(segment["box"]) == result.boxes[segment["label"]]
            assert segment["score"] == pytest.approx(result.scores[segment["label"]], abs=1e-6)
        with Image.open(job.out / row["mask"]) as mask:
            assert np.array_equal(np.asarray(mask), result.label_map)
    assert any(len(row["segments"] or ()) > 1 for row in found)


def test_notes_of_reading_are_recorded(tmp_path: Path, make_job: MakeJob) -> None:
    folder = tmp_path / "tiffs"
    folder.mkdir()
    pages = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(folder / "plain.png")
    plain, noted = sorted(do_all(make_job(folder)), key=lambda row: row["image"] == "pages.tif")
    assert plain["note"] is None
    assert noted["note"].endswith("pages.tif has 3 pages: only the first is read")


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"options": InferenceOptions(threshold=0.9)},
        {"options": InferenceOptions(background=False)},
        {"options": InferenceOptions(mode="slide")},
        {"options": InferenceOptions(overlap=True, threshold=0.4)},
        {"batch_size": 2, "options": InferenceOptions(tta_scales=(1.0, 1.5), guided_filter=True)},
    ],
)
def test_batches_and_settings(photos: Path, make_job: MakeJob, changes: dict[str, Any]) -> None:
    job = make_job(photos, **changes)
    found = do_all(job)
    segmenter = load(device="cpu", **job.model)
    for row in found[:4]:
        result = segmenter(photos / row["image"], job.labels, job.options)
        areas = {segment["label"]: segment["area"] for segment in row["segments"]}
        assert areas.keys() == result.found.keys()
        for label, area in areas.items():  # rounding differs between batch sizes
            assert area == pytest.approx(result.areas[label], abs=3 if job.batch_size > 1 else 0)
    assert sum(row["error"] is not None for row in found) == 2


def test_rows_list_regions_and_the_file_notes(photos: Path, make_job: MakeJob) -> None:
    job = make_job(photos, options=InferenceOptions(instances=True), labels=("cat", "wheel"))
    (row, *_) = do_all(job)
    result = load(device="cpu", **job.model)(photos / row["image"], job.labels, job.options)
    found = [(segment["label"], tuple(segment["box"]), segment["area"]) for segment in row["segments"]]
    assert sorted(found) == sorted((region.label, region.box, region.pixels) for region in result.regions)
    (metadata,) = {
        pq.read_schema(path).metadata[b"fusioner"] for path in sorted((job.out / "shards").rglob("*.parquet"))
    }
    assert (
        json.loads(metadata)["notes"]
        == result.notes
        == ["parts of things are not segmented apart from the whole: wheel"]
    )


def test_a_shard_is_done_once_and_by_one(photos: Path, make_job: MakeJob) -> None:
    job = make_job(photos)
    plan = make_plan(job.source, job.out, 15, {})
    worker = Worker(job)
    assert (worker.run(0).images, worker.run(0).images) == (15, 0)
    hold = (
        "import sys; from pathlib import Path; from fusioner.io import FileLocks\n"
        "locks = FileLocks(Path(sys.argv[1], '.locks')); print(locks.acquire(1), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, job.out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "True\n"
        assert worker.run(1).images == 0
        assert not plan.result(1).exists()
        other.kill()
    assert worker.run(1).errors == 2
    assert not list((job.out / ".attempts").iterdir())


def test_a_full_disk_is_one_sentence(photos: Path, make_job: MakeJob, full_disk: Path) -> None:
    job = make_job(photos)
    make_plan(job.source, job.out, 30, {})
    (job.out / "shards").symlink_to(full_disk)
    worker = Worker(job)
    free = shutil.disk_usage(full_disk).free
    (full_disk / "0000").mkdir()
    (full_disk / "full").write_bytes(bytes(free - 4096))
    with pytest.raises(FusionerError, match="no space left"):
        worker.run(0)


def die(out: Path, run: str, images: list[int]) -> tuple[bool, frozenset[int]]:
    """Run a process that begins an attempt, records images and dies; return what the attempt had read."""
    script = (
        "import os, sys; from pathlib import Path; from fusioner.batch.plan import CrashLog\n"
        "a = CrashLog(Path(sys.argv[1]), 3, sys.argv[2])\n"
        "for image in sys.argv[3:]: a.begin(int(image))\n"
        "os.kill(os.getpid(), 9)"
    )
    (out / ".attempts").mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", script, out, run, *map(str, images)], check=False)
    assert done.returncode == -9
    attempt = CrashLog(out, 3, run)
    attempt._file.close()
    output = attempt.one_by_one, attempt.poison_images
    lines = attempt.path.read_text().splitlines()
    attempt.path.write_text("\n".join(lines[:-1]) + "\n")  # undo the entry of this attempt
    return output


def test_an_image_that_ends_two_processes_is_fatal(tmp_path: Path) -> None:
    assert die(tmp_path, "run", [40]) == (True, frozenset())  # the first attempt records no images
    assert die(tmp_path, "run", [40, 41]) == (True, frozenset())
    assert die(tmp_path, "run", [40]) == (True, frozenset())
    assert die(tmp_path, "run", [40, 41]) == (True, frozenset({41}))
    attempt = CrashLog(tmp_path, 3, "another run")
    assert (attempt.one_by_one, attempt.poison_images) == (False, frozenset())
    with attempt:
        pass
    assert not attempt.path.exists()


def test_peak_memory_is_that_of_the_process_alone() -> None:
    """On Linux the `ru_maxrss` of a child starts at the peak of its parent."""
    held = np.ones(150_000_000)  # 1.2 GB
    script = "from fusioner.batch.worker import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 1e7 < int(child.stdout) < 8e8 < held.nbytes < peak_memory()


def test_exported_models_never_run_on_torch(exported_model: Path, tiny_model: Path) -> None:
    """Check that a batch neither searches for a GPU nor moves exported models to one."""
    assert not runs_on_torch(exported_model)
    assert not runs_on_torch(exported_model, "cuda")
    assert runs_on_torch(tiny_model, "cpu")
    assert (runs_on_torch(device="cpu"), runs_on_torch(device="cuda")) == (False, True)
    assert runs_on_torch(image_encoder="naclip-vit-b16", device="cpu")
