"""A tiny model in a file, which worker processes can load, and photographs with bad ones among them."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

from fusioner.batch.sources import open_source
from fusioner.batch.worker import Job
from fusioner.model.checkpoint import ModelCard, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

LABELS = ("cat", "dog", "person")
Cli = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_model(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of random weights on the random CLIP; it answers in milliseconds."""
    shape = FusionerConfig(image_dim=12, text_dim=12, width=16, layers=1, heads=2, decoder_widths=(8,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Fusioner(shape)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    names = f"clip-vit-b16@{clip_folder}", f"clip-text-b16@{clip_folder}"
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, model, ModelCard(shape, *names, resolution=32, templates=("a photo of a {}",)))
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 crops of photographs in two folders; `b/07.jpg` is no picture, `b/12.jpg` is empty."""
    folder = tmp_path_factory.mktemp("photos")
    whole = Image.fromarray(data.astronaut())
    for number in range(30):
        path = folder / ("a" if number < 15 else "b") / f"{number % 15:02}.jpg"
        path.parent.mkdir(exist_ok=True)
        left = 9 * number
        whole.crop((left, 40, left + 90 + number, 110)).save(path)
    (folder / "b" / "07.jpg").write_text("no picture")
    (folder / "b" / "12.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS), "utf-8")
    return path


@pytest.fixture
def make_job(tiny_model: Path, tmp_path: Path) -> Callable[..., Job]:
    """`make_job(input, **changes)`: a job that writes to tmp_path/out."""

    def make(text: Path | str, column: str | None = None, **changes: Any) -> Job:
        given = {"out": tmp_path / "out", "run": "a run", "labels": LABELS, "model": {"model": tiny_model}} | changes
        return Job(source=open_source(str(text), column), **given)

    return make


@pytest.fixture
def cli(tiny_model: Path, labels: Path, spawn: Callable[..., Any]) -> Cli:
    """`cli(input, out, words...)`: a `fusioner batch` that runs by itself."""

    def start(text: Path | str, out: Path, *words: object, path: Sequence[str] = ()) -> Any:
        command = [sys.executable, "-m", "fusioner", "batch", str(text), "--out", str(out), "--labels", str(labels)]
        command += ["--model", str(tiny_model), *map(str, words)]
        python_path = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
        return spawn(command, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", RAY_worker_niceness="0", PYTHONPATH=python_path)

    return start
