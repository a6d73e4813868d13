"""Test that `fusioner batch` processes every image exactly once when killed, interrupted or run twice at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from fusioner.batch.plan import make_plan
from fusioner.batch.run import BatchJob, Event, RunStats
from fusioner.batch.worker import Worker
from fusioner.cli.main import main
from fusioner.io import FileLocks

Cli = Callable[..., Any]


def rows(out: Path) -> list[dict[str, Any]]:
    return ds.dataset(out / "shards").to_table().sort_by("index").to_pylist()


REPEATS, SHARD = 4, 3
IMAGES = 30 * REPEATS
SHARDS = IMAGES // SHARD


@pytest.fixture
def many(photos: Path) -> Path:
    """Write a list that names each photograph several times."""
    path = photos / "many.txt"
    path.write_text("".join(f"{folder}/{number:02}.jpg\n" for folder in "ab" for number in range(15)) * REPEATS)
    return path


@pytest.fixture
def unfinished(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Lock the last shard, so that no command finishes, and yield a function that releases it."""
    locks = FileLocks(tmp_path / "out" / ".locks")
    with locks:
        assert locks.acquire(SHARDS - 1)
        yield lambda: locks.release(SHARDS - 1)


def check(out: Path, many: Path) -> None:
    found, names = rows(out), many.read_text().splitlines()
    assert [row["index"] for row in found] == list(range(IMAGES))
    assert [row["image"] for row in found] == names
    assert {row["image"] for row in found if row["error"]} == {"b/07.jpg", "b/12.jpg"}
    assert not list(out.rglob(".part-*"))


def with_errors(process: Any) -> str:
    """Return the output of a command that finished with unreadable images."""
    out, err = process.finish()
    assert process.returncode == 2, err
    return out


def results(out: Path) -> int:
    return len(list(out.glob("shards/*/part-*.parquet")))


def wait_for(condition: Callable[[], Any], process: Any) -> None:
    while not condition():
        if process.poll() is not None:
            assert condition(), process.finish()[1]
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_and_repeated(many: Path, cli: Cli, tmp_path: Path, unfinished: Callable[[], None]) -> None:
    """Kill the process group with -9 while it loads, after one shard, and after half of the shards."""
    out, words = tmp_path / "out", ("--shard-size", SHARD, "--workers", 2, "--format", "mask")
    process = cli(many, out, *words)
    wait_for((out / "plan").is_dir, process)
    finished: dict[Path, int] = {}
    for minimum in (0, 1, SHARDS // 2):
        wait_for(lambda minimum=minimum: results(out) >= minimum, process)
        process.kill_group()
        assert process.returncode == -signal.SIGKILL
        assert {path: path.stat().st_mtime_ns for path in finished} == finished  # no shard was repeated
        finished = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/part-*.parquet")}
        process = cli(many, out, *words)
    unfinished()
    assert f"{IMAGES} images are in" in with_errors(process)
    check(out, many)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(out.glob("masks/*/*.png"))) == IMAGES - 2 * REPEATS
    assert "nothing was left to do" in cli(many, out, "--format", "mask").succeed()


@pytest.mark.slow
def test_two_commands_share_the_work(many: Path, cli: Cli, tmp_path: Path, unfinished: Callable[[], None]) -> None:
    """Suspend the first command in the middle of its work until the second has done the rest."""
    out, words = tmp_path / "out", ("--shard-size", SHARD, "--workers", 1)
    first = cli(many, out, *words)
    wait_for(lambda: results(out) > 2, first)
    os.killpg(first.pid, signal.SIGSTOP)
    unfinished()
    second = cli(many, out, *words)
    wait_for(lambda: results(out) >= SHARDS - 1, second)  # all but the shard of the first command
    os.killpg(first.pid, signal.SIGCONT)
    done = [int(process.finish()[0].partition("; ")[2].partition(" ")[0]) for process in (first, second)]
    check(out, many)
    assert min(done) >= SHARD
    assert sum(done) == IMAGES


@pytest.mark.slow
def test_ctrl_c_saves_finished_shards_and_leaves_no_process(
    many: Path, cli: Cli, tmp_path: Path, unfinished: Callable[[], None]
) -> None:
    out = tmp_path / "out"
    process = cli(many, out, "--shard-size", SHARD, "--workers", 1)
    wait_for(lambda: results(out) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.finish()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted"
    while group(process.pid):  # the resource tracker of multiprocessing ends later
        time.sleep(0.05)
    assert 3 * SHARD <= len(rows(out)) < IMAGES


KILL = "os.kill(os.getpid(), 9)"


def poison(name: str, action: str) -> str:
    """Return start-up code by which the workers run `action` when they read an image."""
    return f"""
import os
if any(word in " ".join(sys.orig_argv) for word in ("multiprocessing.spawn", "default_worker")):
    import fusioner.batch.worker as worker
    read_picture = worker.read_picture
    def deadly(picture, on_note):
        if picture.name == {name!r}:
            {action}
        return read_picture(picture, on_note)
    worker.read_picture = deadly
"""


@pytest.mark.slow
def test_an_image_that_kills_its_process_becomes_an_error(photos: Path, cli: Cli, tmp_path: Path) -> None:
    """Simulate a decoder that crashes or a system that runs out of memory."""
    out = tmp_path / "out"
    process = cli(photos, out, "--shard-size", 10, "--workers", 1, start_up=poison("a/05.jpg", KILL))
    assert "3 errors" in with_errors(process)
    failed = [row for row in rows(out) if row["image"] == "a/05.jpg"]
    assert [row["index"] for row in failed] == [5]
    assert failed[0]["error"].startswith("the process died twice while working on this image")
    assert {row["image"] for row in rows(out) if row["error"]} == {"a/05.jpg", "b/07.jpg", "b/12.jpg"}


@pytest.mark.slow
def test_ray_writes_the_same_rows_and_survives_kills(
    many: Path,
    cli: Cli,
    tmp_path: Path,
    unfinished: Callable[[], None],
    exported_model: Path,
    make_job: Callable[..., BatchJob],
) -> None:
    """Kill the command once, then an actor in the middle of a shard, which Ray replaces."""
    pytest.importorskip("ray")
    out, words = tmp_path / "out", ("--shard-size", SHARD, "--workers", 1, "--engine", "ray")
    process = cli(many, out, *words)
    wait_for(lambda: results(out) > 2, process)
    process.kill_group()
    assert process.returncode == -signal.SIGKILL
    unfinished()
    died = tmp_path / "died"
    once = f"os.path.exists({str(died)!r}) or (os.mkdir({str(died)!r}), {KILL})"
    process = cli(many, out, *words, start_up=poison("b/14.jpg", once))  # the last image
    assert f"{IMAGES} images are in" in with_errors(process)
    assert died.exists()
    check(out, many)
    local = make_job(many, out=tmp_path / "local", model={"model": exported_model})
    plan, worker = make_plan(local.source, local.out, None, {}), Worker(local)
    for number in range(plan.shards):
        worker.run(number)
    assert rows(out) == rows(local.out)


def group(number: int) -> bool:
    """Return whether any process of a group is alive."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "missing.txt"], "cannot read labels from missing.txt"),
        (["--workers", "0"], 'Invalid value "0" for --workers. Must be >= 1.'),
        (["--address", "auto"], "--address is that of a Ray cluster: add --engine ray"),
        (["--model", "missing.safetensors"], "cannot read the model"),
        (["--threshold", "2"], "the threshold must be a probability"),
        (["--format", "mask", "--overlap"], "--format mask holds one label per pixel: omit it with --overlap"),
        (["--device", "gpu"], "there is no device 'gpu'"),
        (["--column", "x"], "--column names a column of Parquet files"),
        (["--mode", "slide", "--batch-size", "4"], "--batch-size applies to mode whole, not to mode slide"),
        (["--window", "100"], "window and stride apply to mode slide, not to mode whole"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    photos: Path,
    labels: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--labels", str(labels)] if "--labels" not in words else []
    assert main(["batch", str(photos), "--out", "out", *given, *words]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_each_image_is_counted_once() -> None:
    stats = RunStats(total=100, before=10)
    for event in (Event(3, 2, 1), Event(4, 1, 0), Event(3, 5, 1), Event(3, 6, 2, 1, 500, finished=True)):
        stats.add(event)
    assert (stats.done, stats.images, stats.errors, stats.memory) == (17, 6, 2, 500)
    stats.add(Event(4, 0, 0))  # its process died and was replaced
    assert stats.done == 16
