"""8 bits: what is done before them changes no answer, and what they change is within the limit."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from fusioner.cli.main import main
from fusioner.export.bundle import read_bundle
from fusioner.export.parity import LIMITS
from fusioner.export.smooth import smooth
from fusioner.loading import load

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.fixture
def graph() -> ModelProto:
    """Two norms of eight channels, the first with one channel a hundred times the others; the second is also read."""
    rng = np.random.default_rng(0)
    values = {
        "scale": np.where(np.arange(8) == 3, 100, 1),
        "shift": rng.normal(size=8),
        "weight": rng.normal(size=(8, 8)),
        "other": rng.normal(size=(8, 5)),
    }
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    nodes = [
        helper.make_node("LayerNormalization", ["pixels", "scale", "shift"], ["first"], axis=-1),
        helper.make_node("MatMul", ["first", "weight"], ["between"]),
        helper.make_node("LayerNormalization", ["between", "scale", "shift"], ["second"], axis=-1),
        helper.make_node("MatMul", ["second", "other"], ["product"]),
        helper.make_node("Concat", ["product", "second"], ["out"], axis=-1),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, (1, 3, 4, 8))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, (1, 3, 4, 13))
    made = helper.make_graph(nodes, "two norms", [pixels], [out], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: ModelProto, pixels: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixels": pixels})[0])


def test_smoothing_evens_out_channels_and_changes_no_answer(graph: ModelProto) -> None:
    pixels = [np.random.default_rng(seed).normal(size=(1, 3, 4, 8)).astype(np.float32) for seed in range(3)]
    smoothed = smooth(graph, pixels[:2])
    for one in pixels:  # the last was not looked at
        before = run(graph, one)
        np.testing.assert_allclose(run(smoothed, one), before, rtol=1e-4, atol=1e-5 * np.abs(before).max())
    values = {constant.name: numpy_helper.to_array(constant) for constant in smoothed.graph.initializer}
    assert np.ptp(np.log(np.abs(values["first_smoothed_1"]))) < 0.6 * np.log(100)
    # Where anybody else reads the norm, and in the caller's graph, nothing is moved; nor does anything stay unread.
    assert values["scale"].max() == 100
    assert values.keys() == {"first_smoothed_1", "first_smoothed_2", "between_smoothed_1", "scale", "shift", "other"}
    assert [node.input[1] for node in graph.graph.node[:2]] == ["scale", "weight"]


@pytest.mark.slow
def test_the_command_keeps_what_bears_it(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a limit for random weights, whose answers lie closer to each other than trained ones."""
    monkeypatch.setitem(LIMITS, "int8", (float("inf"), 0.2))
    assert main(["export", "--model", str(trained), "--out", str(tmp_path), "--int8"]) == 0
    assert "in 8 bits" in capsys.readouterr().out
    bundle = read_bundle(tmp_path)
    assert bundle.precision == "int8"
    assert (tmp_path / "image.onnx").stat().st_size < (exported / "image.onnx").stat().st_size
    photo = np.asarray(Image.open(SAMPLES / "chelsea.jpg"))
    one, two = (load(folder)(photo, ["cat", "sofa"]).label_map for folder in (exported, tmp_path))
    assert (one != two).mean() < 0.2
