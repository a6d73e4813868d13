"""Compare exported models with torch through the command line, also where torch is missing."""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image

from fusioner.cli.main import main
from fusioner.client import Client
from fusioner.errors import FusionerError
from fusioner.export.bundle import FEATURES, read_bundle
from fusioner.export.graphs import features_graph, flatten_features, image_graph
from fusioner.export.network import ExportedNetwork, open_graph
from fusioner.export.parity import COUNTS, LIMITS, Row
from fusioner.export.write import export
from fusioner.image import read_image
from fusioner.loading import load
from fusioner.model.checkpoint import find_model

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
LABELS = ["cat", "sofa", "cup"]
Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_manifest_contains_the_parity_table(exported: Path, trained: Path) -> None:
    bundle = read_bundle(exported)
    rows = [Row(**row) for row in bundle.parity]
    assert [row.labels for row in rows] == 3 * list(COUNTS)
    assert len({(row.height, row.width) for row in rows}) == 3
    assert all(row.holds("fp32") for row in rows)
    assert bundle.card.image_encoder.startswith("hf:")


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_agrees_with_torch(exported: Path, trained: Path, runtime: str, mode: str) -> None:
    pair = load(trained, "cpu"), load(exported, runtime=runtime)
    photo = np.asarray(Image.open(SAMPLES / "chelsea.jpg").resize((97, 70)))
    expected, actual = (each(photo, LABELS, mode=mode, guided_filter=mode == "whole") for each in pair)  # pyright: ignore
    assert len(np.unique(expected.label_map)) > 1
    # Pillow and torch differ in resizing and rounding.
    assert (expected.label_map != actual.label_map).mean() < 0.01
    assert all(abs(expected.scores[label] - actual.scores[label]) < 0.01 for label in LABELS)


def test_encodes_once_or_in_batches(exported: Path) -> None:
    segmenter = load(exported)
    photos = [np.asarray(Image.open(SAMPLES / name)) for name in ("chelsea.jpg", "coffee.jpg")]
    many = [segmenter.low_res_logits(encoded, LABELS) for encoded in segmenter.encode_batch(photos)]
    for photo, logits in zip(photos, many, strict=True):
        segmenter.set_image(photo)
        alone = segmenter.segment(LABELS)
        assert np.abs(alone.logits - logits).max() < 1e-4
        assert segmenter.segment(LABELS[:1]).labels == ("cat",)
    assert segmenter.embed([]).shape == (0, 32)


def test_predicts_without_torch(exported: Path, trained: Path, tmp_path: Path, run_without_torch: Run) -> None:
    kinds = "overlay,mask,json,coco,npz,geojson,yolo,labelme,cvat"
    words = ("predict", SAMPLES / "chelsea.jpg", "--labels", ", ".join(LABELS), "--format", kinds)
    done = run_without_torch(*words, "--model", exported, "--runtime", "onnx", "--out", "alone", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert main([str(word) for word in (*words, "--model", trained, "--out", tmp_path / "ours")]) == 0
    masks = [np.asarray(Image.open(tmp_path / folder / "chelsea.png")) for folder in ("alone", "ours")]
    assert (masks[0] != masks[1]).mean() < 0.01
    assert len(list((tmp_path / "alone").iterdir())) == 9


def test_serves_without_torch(exported: Path, trained: Path, without_torch: list[str]) -> None:
    command = [*without_torch, "serve", "--port", "0", "--model", exported, "--runtime", "openvino"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            with Client(address[0]) as client:
                found = client.segment(SAMPLES / "chelsea.jpg", LABELS)
                image = client.upload(SAMPLES / "chelsea.jpg")
                assert (image.segment(LABELS).label_map == found.label_map).all()
                planes = client.export(SAMPLES / "chelsea.jpg", LABELS, "logits")
                assert len(json.loads(planes)["planes"]) == len(LABELS)
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()  # otherwise leaving the block would wait forever
    ours = load(trained, "cpu")(SAMPLES / "chelsea.jpg", LABELS)
    assert (ours.label_map != found.label_map).mean() < 0.01


def test_evaluates_as_torch_does(exported: Path, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    rgb = read_image(SAMPLES / "chelsea.jpg")
    Image.fromarray(rgb).save(root / "images" / "0.png")
    Image.fromarray((rgb[..., 0] > 128).astype(np.uint8)).save(root / "masks" / "0.png")
    (root / "classes.txt").write_text("background\ncat\n")
    models = {
        "file": trained,
        "exported": exported,
        "pretrained": load(trained, "cpu").save_pretrained(tmp_path / "hub"),
    }
    found = {}
    for name, model in models.items():
        out = ("--n-resamples", "2", "--threshold", "0.4", "--out", str(tmp_path / name))
        assert main(["evaluate", "folder", "--root", str(root), "--model", str(model), "--device", "cpu", *out]) == 0
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert found["file"]["miou"] > 0
    for name in ("exported", "pretrained"):
        assert found[name]["miou"] == pytest.approx(found["file"]["miou"], abs=0.05)
        assert len(found[name]["model"]["sha256"]) == 64
        assert found[name]["image_encoder"]["name"] == found["file"]["image_encoder"]["name"]
    assert [result["runtime"] for result in found.values()] == ["torch", "openvino", "torch"]


def test_an_exported_model_is_no_model_file(exported: Path) -> None:
    with pytest.raises(FusionerError, match=r"holds an exported model: give the \.safetensors file"):
        find_model(exported)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--runtime", "torch", "--model", "{exported}"), "torch cannot read an exported model"),
        (("--runtime", "onnx", "--model", "{trained}"), "is not an exported model"),
        (("--device", "cuda", "--model", "{exported}"), "runs on the CPU"),
    ],
)
def test_a_runtime_that_does_not_fit_is_an_error(
    words: tuple[str, ...],
    message: str,
    exported: Path,
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    given = [word.format(exported=exported, trained=trained) for word in words]
    out = ["--out", str(tmp_path)]
    assert main(["predict", str(SAMPLES / "chelsea.jpg"), "--labels", "cat", *out, *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["image.onnx", "tokenizer.json", "fusioner.json", "missing"])
def test_a_damaged_folder_is_an_error(exported: Path, tmp_path: Path, damage: str) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if damage == "missing":
        (tmp_path / "labels.onnx").unlink()
    else:
        (tmp_path / damage).write_bytes(b"{")
    with pytest.raises(FusionerError, match="export the model again"):
        ExportedNetwork(tmp_path)


def test_an_export_that_disagrees_is_not_written(
    exported: Path, trained: Path, traced: Any, photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set a limit of zero and check that the previous export is preserved."""
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    monkeypatch.setitem(LIMITS, "int8", (0.0, 0.0))
    lines: list[str] = []
    with pytest.raises(FusionerError, match="the int8 openvino model does not agree with torch: nothing was written"):
        export(load(trained, "cpu"), out, "openvino", "int8", [photo], lines.append, traced)
    assert "calibrating int8 on 1 photographs" in lines
    changed = re.findall(r"^ *\d+x\d+ .* ([0-9.]+)%  over the limit$", "\n".join(lines), re.MULTILINE)
    assert changed
    assert all(float(percent) < 20 for percent in changed), "too many pixels changed"
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@torch.no_grad()
def test_similarity_channels_and_a_side_that_is_no_multiple_of_the_stride(
    make_trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The training resolution of 20 px is then the only supported size."""
    options = {"image_dim": 0, "similarity": "cosine", "similarity_dim": 32, "affinity_refinement": True}
    segmenter = load(make_trained(20, **options), "cpu")
    graph, step = image_graph(segmenter)
    assert step == 0
    assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 20, 20]
    graph = features_graph(segmenter)
    # With this seed no cosine lies within `similarity.AFFINITY_RAMP`, which amplifies rounding.
    tokens = F.normalize(torch.rand(1, 32, 3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    path = tmp_path / "features.onnx"
    onnx.save(graph, path)
    written = open_graph(path, "onnx")(tokens=tokens.numpy())
    for name, value in flatten_features(segmenter.model.encode_image(tokens)).items():
        np.testing.assert_allclose(written[f"{FEATURES}{name}"], value.numpy(), atol=1e-5)


def test_openvino_in_half_precision(trained: Path, traced: Any, photo: Any, tmp_path: Path) -> None:
    export(load(trained, "cpu"), tmp_path, "openvino", "fp16", [photo], traced=traced)
    assert json.loads((tmp_path / "fusioner.json").read_text())["precision"] == "fp16"
    weights = sum(numpy_helper.to_array(weight).nbytes for weight in traced[0]["image"].graph.initializer)
    assert (tmp_path / "image.bin").stat().st_size < 0.7 * weights
    assert load(tmp_path)(photo, LABELS).labels == tuple(LABELS)
    with pytest.raises(FusionerError, match="cannot read openvino files"):
        load(tmp_path, runtime="onnx")


def test_onnx_in_half_precision(trained: Path, exported: Path, traced: Any, photo: Any, tmp_path: Path) -> None:
    export(load(trained, "cpu"), tmp_path, "onnx", "fp16", [photo], traced=traced)
    assert (tmp_path / "image.onnx").stat().st_size < (exported / "image.onnx").stat().st_size
    assert load(tmp_path, runtime="onnx")(photo, LABELS).labels == tuple(LABELS)


def test_int8_preserves_the_masks(
    trained: Path, exported: Path, traced: Any, photo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raise the limit, because logits of random weights are closer to each other than trained ones."""
    monkeypatch.setitem(LIMITS, "int8", (float("inf"), 0.2))
    export(load(trained, "cpu"), tmp_path, "onnx", "int8", [photo], traced=traced)
    assert read_bundle(tmp_path).precision == "int8"
    assert (tmp_path / "image.onnx").stat().st_size < (exported / "image.onnx").stat().st_size
    expected, actual = (load(folder)(photo, ["cat", "sofa"]).label_map for folder in (exported, tmp_path))
    assert (expected != actual).mean() < 0.2
