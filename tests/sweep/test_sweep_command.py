"""Test `fusioner sweep` when killed, resumed, and with a cell that fails."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.cli.main import main
from fusioner.model.checkpoint import load_model
from fusioner.training.config import LOG

FILE = """
[data]
name = "folder"
root = "own"
[grid]
image_encoders = ["effnet-lite2", "hf:own"]
methods = ["lseg", "mask-transformer"]
[train]
resolution = 28
width = 8
layers = 1
heads = 2
steps = 16
batch_size = 2
val_images = 0
checkpoint_minutes = 0
[evaluate]
n_resamples = 10
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a sweep file and coloured squares, six for training and two for testing."""
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for i in range(8):
        mask = np.zeros((40, 40), np.uint8)
        mask[8:30, 8:30] = 1 + i % 2
        rgb = np.array([[90, 90, 90], [200, 40, 40], [40, 40, 200]], np.uint8)[mask] + np.uint8(i)
        Image.fromarray(rgb).save(tmp_path / "own" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "own" / "masks" / f"{i}.png")
    (tmp_path / "own" / "classes.txt").write_text("background\napple\nbook\n")
    (tmp_path / "own" / "val.txt").write_text("6\n7\n")
    (tmp_path / "sweep.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(spawn: Callable[..., Any]) -> Callable[..., Any]:
    command = [sys.executable, "-m", "fusioner", "sweep", "sweep.toml", "--out", "out"]
    return lambda **environment: spawn(command, OMP_NUM_THREADS="1", **environment)


def cell(method: str) -> Path:
    return next(Path("out", "cells").glob(f"{method}-effnet*"))


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_sweep_survives_kill_and_sigterm(
    start: Callable[..., Any], pause_before: Callable[..., dict[str, str]]
) -> None:
    second = "trainer.config.model.method == 'mask-transformer'"
    log = f"out/cells/mask-transformer-effnet*/run/{LOG}"
    killed = start(**pause_before(6, second))
    killed.wait_for_step(log, 4)
    killed.send_signal(signal.SIGKILL)  # only the parent; its cells must end
    killed.wait()
    first = cell("lseg") / "done.json"
    before = first.stat().st_mtime_ns
    terminated = start(**pause_before(10, second))
    terminated.wait_for_step(log, 8)  # the killed one ended before step 6
    terminated.send_signal(signal.SIGTERM)
    terminated.finish()
    assert terminated.returncode == 128 + signal.SIGTERM
    again = start()
    out, err = again.finish()
    assert again.returncode == 1, err  # because the folder contains no model
    assert "failed: lseg hf:own minilm-embedded seed 0: hf:" in err
    assert "/own has no weights" in err
    assert "2 of 4 cells failed" in err
    assert "| effnet-lite2 | minilm-embedded | mask-transformer | " in out
    assert first.stat().st_mtime_ns == before
    assert (cell("mask-transformer") / "log.txt").read_text().count("resuming") == 2
    table = json.loads(Path("out", "table.json").read_text())
    assert [row["cells"] for row in table["rows"]] == [1, 1, 0, 0]
    assert "value" in table["rows"][0]["miou"]["mean"]
    train = json.loads((cell("mask-transformer") / "cell.json").read_text())["commands"]["train"]
    train[train.index("--out") + 1] = "alone"
    assert main(train) == 0
    swept, solo = (load_model(run / "best.safetensors")[0] for run in (cell("mask-transformer") / "run", Path("alone")))
    assert all(torch.equal(a, b) for a, b in zip(swept.parameters(), solo.parameters(), strict=True))
