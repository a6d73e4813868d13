"""Test that the bundled model runs on ONNX Runtime without torch, with equal masks and weights stored once."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import fusioner
from fusioner.client import Client
from fusioner.errors import FusionerError
from fusioner.export.bundle import PARTS, bundled_model
from fusioner.export.network import ExportedNetwork
from fusioner.segmenter import Segmenter

REPO = Path(__file__).resolve().parents[2]
SAMPLES = REPO / "samples"
LABELS = {
    "chelsea.jpg": ["cat", "dog", "sofa"],
    "astronaut.jpg": ["person", "helmet", "flag"],
    "coffee.jpg": ["cup", "table"],
}
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def onnx_model() -> Segmenter:
    return fusioner.load(device="cpu", threads=1)


@pytest.fixture(scope="module")
def torch_model() -> Segmenter:
    return fusioner.load(device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def build_graphs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_graphs", REPO / "tools" / "build_graphs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_runs_on_onnx_runtime_by_default(onnx_model: Segmenter, torch_model: Segmenter) -> None:
    assert isinstance(onnx_model.network, ExportedNetwork)
    assert onnx_model.network.runtime == "onnx"
    assert not isinstance(torch_model.network, ExportedNetwork)
    assert onnx_model.auto_mode == torch_model.auto_mode == "multicrop"
    assert onnx_model.card == torch_model.card


@pytest.mark.parametrize(
    ("options", "photos"),
    [
        ({"mode": "whole"}, list(LABELS)),
        ({"mode": "multicrop"}, ["astronaut.jpg"]),
        ({"mode": "whole", "tta_scales": (0.7, 1.3), "guided_filter": False}, ["coffee.jpg"]),
    ],
    ids=["whole", "multicrop", "odd grids"],
)
def test_agrees_with_torch(
    onnx_model: Segmenter, torch_model: Segmenter, options: dict[str, Any], photos: list[str]
) -> None:
    for name in photos:
        expected, result = (model(SAMPLES / name, LABELS[name], **options) for model in (torch_model, onnx_model))
        assert expected.logits is not None
        assert result.logits is not None
        assert np.abs(expected.logits - result.logits).max() < 1e-4
        assert (expected.label_map != result.label_map).mean() <= 1e-4


def test_offers_the_parts_of_the_torch_model(onnx_model: Segmenter, tmp_path: Path) -> None:
    again = Segmenter.from_pretrained(onnx_model.save_pretrained(tmp_path / "copy"), device="cpu")
    assert again.card == onnx_model.card


def test_one_template_is_a_string() -> None:
    assert fusioner.load(device="cpu", templates="a drawing of a {}").card.templates == ("a drawing of a {}",)


def test_stores_no_weight_twice() -> None:
    for part in PARTS:
        path = bundled_model().graph(part)
        graph = onnx.load(path, load_external_data=False).graph
        inline = [t.name for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        sizes = {t.name: len(t.raw_data) for t in graph.initializer}
        assert all(sizes[name] <= 4096 for name in inline)
        assert path.stat().st_size < 300_000


@pytest.mark.parametrize("part", PARTS)
def test_references_are_tensors_of_the_files(part: str, build_graphs: ModuleType) -> None:
    """If this fails, a weight file has changed and the graphs must be rebuilt."""
    stored = {
        (tensor.file, str(tensor.offset), str(tensor.length))
        for name in build_graphs.FILES
        for _, tensor in build_graphs.index_tensors(bundled_model().folder / name)
    }
    graph = onnx.load(bundled_model().graph(part), load_external_data=False).graph
    used = [t.external_data for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert len(used) > 20
    assert {tuple(entry.value for entry in entries) for entries in used} <= stored


def test_predicts_without_torch(run_without_torch: Run, onnx_model: Segmenter, tmp_path: Path) -> None:
    words = ("predict", SAMPLES / "chelsea.jpg", "--labels", "cat,sofa", "--mode", "whole", "--out", ".")
    done = run_without_torch(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mask = np.asarray(Image.open(tmp_path / "chelsea.png"))
    expected = onnx_model(SAMPLES / "chelsea.jpg", ["cat", "sofa"], mode="whole")
    assert (mask != expected.label_map).mean() <= 1e-4


def test_runs_batches_without_torch(run_without_torch: Run, tmp_path: Path) -> None:
    words = ("batch", SAMPLES, "--labels", "cat,cup", "--out", "out", "--workers", "1")
    done = run_without_torch(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images are in out" in done.stdout


def test_serves_without_torch(without_torch: list[str], onnx_model: Segmenter) -> None:
    command = [*without_torch, "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            with Client(address[0]) as client:
                found = client.segment(SAMPLES / "chelsea.jpg", ["cat", "sofa"])
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
    expected = onnx_model(SAMPLES / "chelsea.jpg", ["cat", "sofa"], mode="whole")
    assert (found.label_map != expected.label_map).mean() <= 1e-4


@pytest.mark.parametrize(
    "words",
    [
        ("train", "folder", "--root", "{samples}", "--out", "run"),
        ("evaluate", "folder", "--root", "{samples}"),
        ("export", "--out", "exported"),
        ("predict", "{samples}/chelsea.jpg", "--labels", "cat", "--runtime", "torch"),
        ("predict", "{samples}/chelsea.jpg", "--labels", "cat", "--device", "cuda"),
        ("predict", "{samples}/chelsea.jpg", "--labels", "cat", "--model", "some.safetensors"),
    ],
    ids=lambda words: words[0],
)
def test_commands_that_need_torch_report_it(words: tuple[str, ...], run_without_torch: Run, tmp_path: Path) -> None:
    done = run_without_torch(*(word.format(samples=SAMPLES) for word in words), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this ")
    assert "needs torch: pip install 'fusioner[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_exported_folder_has_no_torch_model(exported: Path) -> None:
    with pytest.raises(FusionerError, match="load its"):
        assert fusioner.load(exported).model


IMPORTS = """
import json, sys
from fusioner.cli.main import main
code = main(sys.argv[1:])
print(json.dumps([code, sorted(sys.modules)]))
"""
HEAVY = {"torch", "transformers", "lightning_fabric", "huggingface_hub", "pandas", "scipy", "matplotlib", "sklearn"}


def test_predicting_imports_nothing_heavy_and_reports_nothing(tmp_path: Path) -> None:
    """The telemetry of ONNX Runtime would create a session file in the temporary folder."""
    (tmp_path / "temporary").mkdir()
    disabling = ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")  # each of them disables it
    variables = {name: value for name, value in os.environ.items() if name not in disabling}
    variables["TMPDIR"] = str(tmp_path / "temporary")
    words = ["predict", str(SAMPLES / "chelsea.jpg"), "--labels", "cat", "--device", "cpu", "--mode", "whole"]
    command = [sys.executable, "-c", IMPORTS, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert HEAVY.isdisjoint(modules)
    assert list((tmp_path / "temporary").iterdir()) == []


OWN_IMPORTS = """
import sys
import fusioner
fusioner.load(device="cpu")("chelsea.jpg", ["cat"], mode="whole")
print(*(name for name in sys.modules if name.split(".")[0] == "fusioner"))
"""


def test_a_call_imports_25_modules_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", OWN_IMPORTS], cwd=SAMPLES, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) <= 25


TORCH_IMPORTS = """
import json, sys
import torch
known = set(sys.modules)
import fusioner
fusioner.load(device="cpu", runtime="torch")("chelsea.jpg", ["cat"], mode="whole")
print(json.dumps(sorted(set(sys.modules) - known)))
"""


def test_the_torch_model_imports_no_transformers_and_no_training_framework() -> None:
    """Compare with `import torch`, which itself imports parts of torch.distributed."""
    done = subprocess.run([sys.executable, "-c", TORCH_IMPORTS], cwd=SAMPLES, capture_output=True, text=True)
    modules = json.loads(done.stdout)
    assert "fusioner.torch_network" in modules
    forbidden = HEAVY - {"torch"} | {"torchmetrics", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed"}
    assert not [name for name in modules if any(f"{name}.".startswith(f"{part}.") for part in forbidden)]
