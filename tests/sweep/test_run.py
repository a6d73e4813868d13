"""Test cells as processes: finished ones are skipped, failures are isolated, and no process outlives the sweep."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusioner.cli.main import main
from fusioner.errors import FusionerError
from fusioner.evaluation.results import Counts, PromptCounts, PromptPlan
from fusioner.sweep.cell import CELL, read_done
from fusioner.sweep.plan import Cell, Sweep
from fusioner.sweep.run import claimed, estimate, folder_of, is_done, run
from fusioner.sweep.table import build, to_html, to_markdown, write

BASE = Sweep("pascal", "data", "pascal", "data", {"preset": "small", "steps": 10}, {}, ())


class Cheap(Sweep):
    """A sweep whose cells list the encoders instead of training; the evaluation of fold 3 fails."""

    def commands(self, cell: Cell, folder: Path, cache: Path) -> dict[str, list[str]]:
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "metrics.json").write_text('{"miou": 12.34}')
        return {"train": ["models"], "evaluate": ["models"] if cell.fold != 3 else ["models", "--nonsense"]}


def cells(*folds: int) -> tuple[Cell, ...]:
    return tuple(Cell("image", "text", "lseg", fold, 0) for fold in folds)


def cheap(*folds: int) -> Cheap:
    return Cheap(**{**vars(BASE), "cells": cells(*folds)})


def ran(sweep: Sweep, out: Path, jobs: int = 2) -> tuple[dict[Cell, str], list[str], list[float]]:
    output: list[str] = []
    shown: list[float] = []
    failed = run(sweep, out, jobs, output.append, lambda done, note: shown.append(done), lambda: None)
    return failed, output, shown


def test_finished_cells_are_skipped_and_failed_ones_retried(tmp_path: Path) -> None:
    sweep = cheap(0, 1, 3)
    failed, output, shown = ran(sweep, tmp_path)
    assert [cell.fold for cell in failed] == [3]
    assert "nonsense" in failed[sweep.cells[2]]
    assert "(exit code 2, see " in failed[sweep.cells[2]]
    assert sum(line.startswith("done: lseg image text fold") and "miou 12.3" in line for line in output) == 2
    assert shown[-1] == 3
    done = [folder_of(tmp_path, cell) / "done.json" for cell in sweep.cells]
    before = [path.stat().st_mtime_ns for path in done[:2]]
    assert "clip-vit-b16" in (done[0].parent / "log.txt").read_text()
    failed, output, _ = ran(sweep, tmp_path)
    assert [path.stat().st_mtime_ns for path in done[:2]] == before
    assert [line.split(":")[0] for line in output] == ["failed"]
    assert set(read_done(done[2].parent)) == {"train"}  # not repeated
    log = (done[2].parent / "log.txt").read_text()
    assert log.count("image encoder ") == 1
    assert log.count("error:") == 2


def test_the_remaining_time_is_estimated_from_finished_cells(tmp_path: Path) -> None:
    sweep = cheap(0, 1)
    rough = estimate(sweep, tmp_path, sweep.cells[1])
    assert 60 < rough < estimate(replace(sweep, train={"steps": 20}), tmp_path, sweep.cells[1])
    folder = folder_of(tmp_path, sweep.cells[0])
    folder.mkdir(parents=True)
    (folder / "done.json").write_text('{"train": 5.5, "evaluate": 2}')
    assert is_done(tmp_path, sweep.cells[0])
    assert estimate(sweep, tmp_path, sweep.cells[1]) == 7.5


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    def claim(**changes: Any) -> None:
        with claimed(replace(BASE, **changes), tmp_path):
            pass

    claim_and_wait = (
        "import sys; from pathlib import Path; from fusioner.io import FileLocks\n"
        "locks = FileLocks(Path(sys.argv[1], '.lock')); print(locks.acquire(0), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", claim_and_wait, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "True\n"
        with pytest.raises(FusionerError, match="another sweep is at work"):
            claim()
        other.kill()
    claim()
    claim(cells=cells(0))  # the grid may be extended
    with pytest.raises(FusionerError, match=r"settings: steps \(10 then, 11 now\): choose another --out"):
        claim(train={"preset": "small", "steps": 11})
    with pytest.raises(FusionerError, match=r"settings: limit \(the default then, 3 now\)"):
        claim(evaluate={"limit": 3})
    with pytest.raises(FusionerError, match=r"settings: test set \(pascal then, coco-to-pascal now\)"):
        claim(test_set="coco-to-pascal")


def test_a_cell_ends_with_its_parent_process(tmp_path: Path) -> None:
    """A parent killed with -9 sends no signal, but its end of the pipe is closed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # reading it blocks the cell
    (tmp_path / CELL).write_text(json.dumps({"commands": {"train": ["sweep", str(pipe), "--out", str(tmp_path)]}}))
    script = "import subprocess, sys, time\n"
    script += "child = subprocess.Popen([sys.executable, '-m', 'fusioner.sweep.cell', sys.argv[1]], stdin=-1)\n"
    script += "print(child.pid, flush=True)\nchild.wait()"
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with parent.stdout as shared:
        assert shared.read() == b""  # end of file: the child, which shares the pipe, has ended


def evidence(fold: int, right: int) -> Counts:
    """Return counts of two images with one pair each, of which `right` of 10 pixels are found."""
    images = (f"{fold}a", f"{fold}b")
    pairs = PromptCounts(np.array([0, 1]), np.array([1, 1]), np.array([[80, 90, right, 10] * 2] * 2, float))
    none = PromptCounts(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3)))
    return Counts(PromptPlan("official", images), pairs, none, {}, [], [])


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Sweep, Path]:
    """Return a sweep with folds 0 and 1 of one row finished, and fold 0 of another."""
    from fusioner.evaluation.results import SavedRun

    other_method = replace(cells(0)[0], method="late")
    sweep = replace(BASE, cells=(*cells(0, 1), other_method, replace(other_method, fold=1)))
    for cell in sweep.cells[:3]:
        folder = folder_of(tmp_path, cell)
        folder.mkdir(parents=True)
        (folder / "done.json").write_text('{"train": 1, "evaluate": 1}')

    def read(folder: Path) -> SavedRun:
        cell = next(cell for cell in sweep.cells if folder_of(tmp_path, cell) == folder.parent)
        assert cell.fold is not None
        found = 9 if cell.method == "late" else 4 + 2 * cell.fold
        return SavedRun(folder, "pascal", [], {cell.fold: evidence(cell.fold, found)})

    monkeypatch.setattr("fusioner.sweep.table.load_counts", read)
    return sweep, tmp_path


def test_the_table_has_a_row_per_method_and_a_column_per_fold(swept: tuple[Sweep, Path]) -> None:
    sweep, out = swept
    table = build(sweep, out, {sweep.cells[3]: "no <memory>"}, draws=20)
    assert [path.name for path in write(table, out)] == ["table.json", "table.md", "table.html"]
    content = json.loads((out / "table.json").read_text())
    assert content["columns"] == ["0", "1", "mean"]
    first, second = content["rows"]
    assert {column: figure["value"] for column, figure in first["miou"].items()} == {"0": 40, "1": 60, "mean": 50}
    assert set(second["miou"]) == {"0", "mean"}
    assert (second["cells"], second["cells_wanted"], first["images"]) == (1, 2, 4)
    text = to_markdown(table)
    assert "| image encoder | text encoder | method | fold 0 | fold 1 | mean |" in text
    assert "| image | text | lseg | 40.0 [40.0, 40.0] | 60.0 [60.0, 60.0] | 50.0 [" in text
    assert "| image | text | late | 90.0 [90.0, 90.0] | - |" in text
    assert "late: 1 of 2 cells are finished; its mean is of those" in text
    page = to_html(table)
    assert "failed: late image text fold 1 seed 0: no &lt;memory&gt;" in page
    assert page.count("class='n best'") == 1  # the unfinished row, though higher, is not marked as best


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.toml"
    file.write_text('[data]\nname = "pascal"\nroot = "x"\n[grid]\nmethods = ["late", "lseg"]\n[train]\nsteps = 10\n')
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run", "--jobs", "2"]) == 0
    output = capsys.readouterr().out
    assert "8 cells" in output
    assert output.count("to do") == 8
    assert "in all with --jobs 2, a rough guess" in output
    assert not (tmp_path / "out").exists()
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--jobs", "0"]) == 2


@pytest.mark.parametrize(
    ("encoders", "similarity", "message"),
    [
        ('["dinov2-s", "clip-vit-b16"]', "auto", ""),
        ('["dinov2-s", "clip-vit-b61"]', "auto", "did you mean clip-vit-b16"),
        ('["dinov2-s", "mocov3-vit-s"]', "auto", "mocov3-vit-s: it is published as a file"),
        ('["clip-vit-b16", "dinov2-s"]', "cosine", "dinov2-s has no text encoder in its space"),
        ('["clip-vit-b16", "sclip-vit-b16"]', "posterior", "clip-vit-b16 supports --similarity cosine"),
    ],
)
def test_dry_run_reports_errors_of_cells(
    encoders: str, similarity: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.toml"
    grid = f'image_encoders = {encoders}\ntext_encoders = ["clip-text-b16"]\nfolds = [0]\n'
    train = f'preset = "small"\nsimilarity = "{similarity}"\n'
    file.write_text(f'[data]\nname = "pascal"\nroot = "x"\n[grid]\n{grid}[train]\n{train}')
    code = main(["sweep", str(file), "--out", str(tmp_path / "out"), "--dry-run"])
    out, err = capsys.readouterr()
    assert code == (2 if message else 0), err
    assert (message in err) if message else "2 cells" in out
