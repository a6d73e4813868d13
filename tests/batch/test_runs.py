"""Real processes through the real command: killed, doubled, interrupted; nothing lost, nothing twice."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from fusioner.batch.run import RunStats
from fusioner.batch.worker import Progress, ShardResult
from fusioner.cli.main import main

Cli = Callable[..., Any]


def rows(out: Path) -> list[dict[str, Any]]:
    return ds.dataset(out / "shards").to_table().sort_by("index").to_pylist()


@pytest.fixture
def many(photos: Path) -> Path:
    """A list of the photographs, each twenty times: enough that no machine has done them before it is killed."""
    path = photos / "many.txt"
    path.write_text("".join(f"{folder}/{number:02}.jpg\n" for folder in "ab" for number in range(15)) * 20)
    return path


def check(out: Path, many: Path) -> None:
    found, names = rows(out), many.read_text().splitlines()
    assert [row["index"] for row in found] == list(range(600))
    assert [row["image"] for row in found] == names
    assert {row["image"] for row in found if row["error"]} == {"b/07.jpg", "b/12.jpg"}
    assert not list(out.rglob(".part-*"))


def with_errors(process: Any) -> str:
    """The output of a command that has done everything, unreadable images among it."""
    out, err = process.finish()
    assert process.returncode == 2, err
    return out


def results(out: Path) -> int:
    return len(list(out.glob("shards/*/part-*.parquet")))


def until(condition: Callable[[], Any], process: Any) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_anywhere_and_run_again(many: Path, cli: Cli, tmp_path: Path) -> None:
    """Kill -9 of the whole group: once while it plans or loads, then after some of the shards."""
    out, rng = tmp_path / "out", random.Random(1)
    process = cli(many, out, "--shard-size", 3, "--workers", 2, "--format", "mask")
    until((out / "plan").is_dir, process)
    for wanted in (0, 3, 40):
        until(lambda wanted=wanted: results(out) >= wanted, process)
        time.sleep(rng.uniform(0, 0.05))
        process.kill_group()
        assert process.returncode == -9
        whole = {path: path.stat().st_mtime_ns for path in out.glob("shards/*/part-*.parquet")}
        process = cli(many, out, "--shard-size", 3, "--workers", 2, "--format", "mask")
    assert "600 images are in" in with_errors(process)
    check(out, many)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole  # what was done was not done again
    assert len(list(out.glob("masks/*/*.png"))) == 560
    assert "nothing was left to do" in cli(many, out, "--format", "mask").succeed()


@pytest.mark.slow
def test_two_commands_share_the_work(many: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [cli(many, out, "--shard-size", 3, "--workers", 1) for _ in range(2)]
    told = [process.finish()[0] for process in both]
    check(out, many)
    done = [int(one.partition("; ")[2].partition(" ")[0]) if "done now" in one else 0 for one in told]
    assert sum(done) == 600


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_leaves_no_process(many: Path, cli: Cli, tmp_path: Path) -> None:
    """Of 3,000 images, which last longer than any pause of a busy machine; going on is tested above."""
    out = tmp_path / "out"
    many.write_text(many.read_text() * 5)
    process = cli(many, out, "--shard-size", 3, "--workers", 1)
    until(lambda: results(out) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, complained = process.finish()
    assert process.returncode == 130, complained
    assert complained.splitlines()[-1] == "interrupted"
    while group(process.pid):  # multiprocessing's own helper goes a moment later
        time.sleep(0.05)
    assert 9 <= len(rows(out)) < 3000


POISON = """
import os, fusioner.batch.worker as worker
read_picture = worker.read_picture
def deadly(picture, on_note):
    if picture.name == "a/05.jpg":
        os.kill(os.getpid(), 9)
    return read_picture(picture, on_note)
worker.read_picture = deadly
"""


@pytest.mark.slow
def test_an_image_that_kills_its_process_becomes_an_error(photos: Path, cli: Cli, tmp_path: Path) -> None:
    """As a crashing decoder would, or the system where memory runs out."""
    (tmp_path / "sitecustomize.py").write_text(POISON)
    out = tmp_path / "out"
    told = with_errors(cli(photos, out, "--shard-size", 10, "--workers", 1, path=[str(tmp_path)]))
    assert "3 errors" in told
    deadly = [row for row in rows(out) if row["image"] == "a/05.jpg"]
    assert [row["index"] for row in deadly] == [5]
    assert deadly[0]["error"].startswith("the process died twice while working on this image")
    assert {row["image"] for row in rows(out) if row["error"]} == {"a/05.jpg", "b/07.jpg", "b/12.jpg"}


@pytest.mark.slow
def test_ray_does_the_same_and_survives_kills(many: Path, cli: Cli, tmp_path: Path) -> None:
    """The command is killed once; of the second start an actor is killed, which Ray replaces."""
    pytest.importorskip("ray")
    out, words = tmp_path / "out", ("--shard-size", 3, "--workers", 1, "--engine", "ray")
    process = cli(many, out, *words)
    until(lambda: results(out) > 2, process)
    process.kill_group()
    assert process.returncode == -9
    process = cli(many, out, *words)
    until(lambda: children(process.pid, "MapWorker"), process)
    before = results(out)
    until(lambda: results(out) > before, process)
    for actor in children(process.pid, "MapWorker"):
        os.kill(actor, signal.SIGKILL)
    assert "600 images are in" in with_errors(process)
    check(out, many)
    with_errors(cli(many, tmp_path / "local", "--workers", 1))
    assert rows(out) == rows(tmp_path / "local")


def group(number: int) -> bool:
    """Whether anything of a process group is alive."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def children(root: int, name: str) -> list[int]:
    """Processes below one whose command line holds a name."""
    family = {root}
    table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in table.splitlines()]
    while more := {int(pid) for pid, parent, _ in lines if int(parent) in family} - family:
        family |= more
    return [int(pid) for pid, _, words in lines if int(pid) in family and name in words]


@pytest.mark.parametrize(
    ("words", "told"),
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
def test_wrong_words_are_one_sentence(
    photos: Path,
    labels: Path,
    tmp_path: Path,
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--labels", str(labels)] if "--labels" not in words else []
    assert main(["batch", str(photos), "--out", "out", *given, *words]) == 2
    complained = capsys.readouterr().err
    assert told in complained
    assert complained.count("\n") == 1


def test_each_image_is_counted_once() -> None:
    stats = RunStats(total=100, before=10)
    for event in (Progress(3, 2, 1), Progress(4, 1, 0), Progress(3, 5, 1), ShardResult(3, 6, 2, 500)):
        stats.add(event)
    assert (stats.done, stats.images, stats.errors, stats.memory) == (17, 6, 2, 500)
    stats.add(Progress(4, 0, 0))  # its process died, another began
    assert stats.done == 16
