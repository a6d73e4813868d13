"""Tiny model files that worker processes can load, and photographs of which two are unreadable."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import torch
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, models, pre_tokenizers

from fusioner.batch.run import BatchJob
from fusioner.batch.sources import open_source
from fusioner.export.bundle import Bundle
from fusioner.model.checkpoint import ModelCard, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

LABELS = ("cat", "dog", "person")
Cli = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_model(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model file of random weights over the random CLIP."""
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


GRAPHS = {
    "image": """g (float[n, 3, h, w] pixels) => (float[n, 3, gh, gw] tokens) {
        tokens = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixels)
    }""",
    "text": """g (int64[n, t] ids, int64[n, t] mask) => (float[n, 3] vectors)
    <float[4, 3] table = {0, 0, 0, 9, -4, -4, -4, 9, -4, -4, -4, 9}, int64[1] last = {-1}, int64[1] second = {1}> {
        words = Gather (table, ids)
        weights = Cast <to = 1> (mask)
        column = Unsqueeze (weights, last)
        weighted = Mul (words, column)
        vectors = ReduceSum <keepdims = 0> (weighted, second)
    }""",
    "labels": """g (float[n, 3, gh, gw] tokens, float[k, 3] text, float[h, w] canvas) => (float[n, k, h, w] logits)
    <int64[1] two = {2}, int64[1] none = {0}> {
        small = Einsum <equation = "kd,ndhw->nkhw"> (text, tokens)
        planes = Shape <start = 0, end = 2> (small)
        plane = Shape (canvas)
        sizes = Concat <axis = 0> (planes, plane)
        logits = Resize <mode = "linear"> (small, , , sizes)
    }""",
}
"""Graphs of an exported model: mean colours of 8 x 8 pixels, of which cat is red, dog green and person blue."""


@pytest.fixture(scope="session")
def exported_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in the layout of `fusioner export`; loading it takes a second and does not import torch."""
    folder = tmp_path_factory.mktemp("exported")
    shape = FusionerConfig(image_dim=3, text_dim=3, width=8, layers=1, heads=1, decoder_widths=(8,))
    card = ModelCard(shape, "mean-colour", "colour-words", resolution=32, templates=("{}",))
    text = {"context": 8, "fixed": False, "pad": ["<pad>", 0], "lower": False}
    for part, graph in GRAPHS.items():
        onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}'), folder / f"{part}.onnx")
    vocabulary = {word: number for number, word in enumerate(("<pad>", *LABELS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    Bundle(folder, "onnx", "fp32", card, step=8, stride=8, text=text).write()
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 30 crops of photographs to two folders; `b/07.jpg` is not a picture, `b/12.jpg` is empty."""
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
def make_job(tiny_model: Path, tmp_path: Path) -> Callable[..., BatchJob]:
    """Return `make(input, **changes)`, which creates a job that writes to tmp_path/out."""

    def make(text: Path | str, column: str | None = None, **changes: Any) -> BatchJob:
        options = {"out": tmp_path / "out", "run": "a run", "labels": LABELS, "model": {"model": tiny_model}} | changes
        return BatchJob(source=open_source(str(text), column), **options)

    return make


WITHOUT_TORCH = 'import sys\nsys.modules["torch"] = None  # importing it fails as where it is not installed\n'


@pytest.fixture
def cli(exported_model: Path, labels: Path, spawn: Callable[..., Any], tmp_path: Path) -> Cli:
    """Return `start(input, out, words..., start_up=code)`: run `fusioner batch` with `code` first in each process."""

    def start(text: Path | str, out: Path, *words: object, start_up: str = "") -> Any:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_TORCH + start_up)
        command = [sys.executable, "-m", "fusioner", "batch", str(text), "--out", str(out), "--labels", str(labels)]
        command += ["--model", str(exported_model), *map(str, words)]
        python_path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
        return spawn(command, OMP_NUM_THREADS="1", RAY_worker_niceness="0", PYTHONPATH=python_path)

    return start
