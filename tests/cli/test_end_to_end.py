"""Run the real commands from a small folder to masks: check, train, evaluate, predict."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data


def fusioner(*words: str | Path, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", "-m", "fusioner", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FUSIONER_CACHE": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write crops of a photograph of coffee with a drawn red ball or blue box, and their exact masks."""
    root, rng, table = tmp_path / "toys", np.random.default_rng(0), Image.fromarray(data.coffee())
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(8):
        left, top = int(rng.integers(0, 400)), int(rng.integers(0, 250))
        image, mask = table.crop((left, top, left + 160, top + 120)), Image.new("L", (160, 120))
        x, y, kind = int(rng.integers(10, 90)), int(rng.integers(10, 60)), 1 + i % 2
        for canvas, colour in ((image, ("red", "blue")[kind - 1]), (mask, kind)):
            draw = ImageDraw.Draw(canvas)
            (draw.ellipse if kind == 1 else draw.rectangle)((x, y, x + 50, y + 50), fill=colour)
        image.save(root / "images" / f"{i}.jpg")
        mask.save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("background\nred ball\nblue box\n")
    (root / "train.txt").write_text("".join(f"{i}\n" for i in range(6)))
    (root / "val.txt").write_text("6\n7\n")
    return root


@pytest.mark.slow
def test_from_a_folder_to_masks(folder: Path, tmp_path: Path) -> None:
    assert "8" in fusioner("data", "check", "folder", "--root", folder, cwd=tmp_path)
    train = ("train", "folder", "--root", folder, "--resolution", "112", "--batch-size", "3", "--steps", "4")
    fusioner(*train, "--closed-set-epochs", "1", "--out", "run", cwd=tmp_path)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [0, 1, 2, 3]
    assert (tmp_path / "run" / "best.safetensors").is_file()

    model = tmp_path / "run" / "last.safetensors"
    out = tmp_path / "report"
    fusioner("evaluate", "folder", "--root", folder, "--model", model, "--out", out, cwd=tmp_path)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 2
    assert 0 <= metrics["miou"] <= 100
    assert {"per_class", "protocol"} <= set(metrics)

    photo = folder / "images" / "6.jpg"
    fusioner("predict", photo, "--labels", "red ball, blue box", "--model", model, "--out", "masks", cwd=tmp_path)
    answer = json.loads((tmp_path / "masks" / "6.json").read_text())
    mask = np.asarray(Image.open(tmp_path / "masks" / "6.png"))
    assert mask.shape == (120, 160)
    assert [segment["pixels"] for segment in answer["segments"]] == [int((mask == i).sum()) for i in (1, 2)]
