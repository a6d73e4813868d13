"""Loading of weights by name: a hub on 127.0.0.1, the cache, folders, and errors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save_file
from transformers import CLIPModel, logging

from fusioner.encoders.image import load_image_encoder
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.errors import FusionerError

Make = Callable[[str], tuple[Path, Any]]


def copy(folder: Path, target: Path, *, excluded: str = "") -> None:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(excluded), dirs_exist_ok=True)


def test_a_registered_name_downloads_once(hub: Any, image_model: Make) -> None:
    folder, _ = image_model("dinov2")
    hub.add("facebook/dinov2-small", folder)
    images = torch.rand(1, 3, 16, 24)
    encoder = build_image_encoder("dinov2-s")
    assert encoder.name == "dinov2-s"
    assert any("model.safetensors" in request for request in hub.requests)
    assert torch.equal(encoder(images), build_image_encoder(f"dinov2-s@{folder}")(images))
    hub.requests.clear()
    assert torch.equal(build_image_encoder("dinov2-s")(images), encoder(images))
    assert hub.requests == []


def test_a_text_encoder_from_the_hub(hub: Any, text_model: Make) -> None:
    hub.add("someone/some-bert", text_model("bert")[0])
    assert build_text_encoder("hf:someone/some-bert")(["cat"]).shape == (1, 32)


def test_a_repository_that_is_not_there(hub: Any) -> None:
    with pytest.raises(FusionerError, match=r"no repository facebook/dinov2-small.*dinov2-s@/FOLDER"):
        build_image_encoder("dinov2-s")
    with pytest.raises(FusionerError, match=r"no repository no-one/nothing.*hf:/FOLDER"):
        build_text_encoder("hf:no-one/nothing")


def test_a_repository_behind_a_licence(hub: Any) -> None:
    hub.gated["facebook/dinov3-vits16-pretrain-lvd1689m"] = 403
    with pytest.raises(FusionerError, match=r"licence.*hf auth login.*dinov3-s@/FOLDER"):
        build_image_encoder("dinov3-s")


def test_a_hub_out_of_reach(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FusionerError, match=r"cannot download facebook/dino-vits16.*dino-vit-s16@/FOLDER"):
        build_image_encoder("dino-vit-s16")


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "names no model"), ("a/b/c", "no folder"), ("/no/such/folder", "no folder"), ("!bad!", "cannot download")],
)
def test_an_unknown_source(hub: Any, source: str, message: str) -> None:
    with pytest.raises(FusionerError, match=message):
        build_image_encoder(f"hf:{source}")


def test_a_folder_without_config(image_model: Make, tmp_path: Path) -> None:
    copy(image_model("vit")[0], tmp_path, excluded="config.json")
    with pytest.raises(FusionerError, match=r"has no config\.json"):
        build_image_encoder(f"dino-vit-s16@{tmp_path}")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(FusionerError, match=r"config\.json is not a configuration"):
        build_image_encoder(f"dino-vit-s16@{tmp_path}")


def test_a_folder_without_weights_or_with_pickled_ones(image_model: Make, tmp_path: Path) -> None:
    folder, model = image_model("vit")
    copy(folder, tmp_path, excluded="model.safetensors")
    name = f"dino-vit-s16@{tmp_path}"
    with pytest.raises(FusionerError, match=r"has no weights \(model\.safetensors"):
        build_image_encoder(name)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(build_image_encoder(name)(images), build_image_encoder(f"hf:{folder}")(images))


def test_broken_weights(image_model: Make, tmp_path: Path) -> None:
    copy(image_model("vit")[0], tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load(weights.read_bytes())
    weights.write_bytes(weights.read_bytes()[:3000])
    with pytest.raises(FusionerError, match="cannot be read"):
        build_image_encoder(f"hf:{tmp_path}")
    incomplete = {key: value for key, value in tensors.items() if "layer.1.output" not in key}
    save_file(incomplete, weights)
    with pytest.raises(FusionerError, match="2 tensors are missing, first"):
        build_image_encoder(f"hf:{tmp_path}")
    config = json.loads((tmp_path / "config.json").read_text())
    save_file(tensors, weights)
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(FusionerError, match=r"\d+ tensors are of another shape, first"):
        build_image_encoder(f"hf:{tmp_path}")


def test_half_precision_weights_are_computed_in_fp32(image_model: Make, tmp_path: Path) -> None:
    copy(image_model("vit")[0], tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file({key: value.half() for key, value in load(weights.read_bytes()).items()}, weights, {"format": "pt"})
    encoder = load_image_encoder(str(tmp_path), "half")
    assert encoder.model.dtype == torch.float32
    assert encoder(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_a_folder_of_another_kind(image_model: Make, text_model: Make) -> None:
    with pytest.raises(FusionerError, match="'vit', not one of clip"):
        build_image_encoder(f"clip-vit-b32@{image_model('vit')[0]}")
    with pytest.raises(FusionerError, match="'bert', not one of clip, "):
        build_image_encoder(f"hf:{text_model('bert')[0]}")
    with pytest.raises(FusionerError, match="'bert', not one of mpnet"):
        build_text_encoder(f"mpnet@{text_model('bert')[0]}")


def test_a_text_folder_without_tokenizer(text_model: Make, tmp_path: Path) -> None:
    copy(text_model("bert")[0], tmp_path, excluded="tokenizer.json")
    with pytest.raises(FusionerError, match=r"has no tokenizer \(tokenizer\.json"):
        build_text_encoder(f"bert-base@{tmp_path}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FusionerError, match=r"the tokenizer in .* cannot be read"):
        build_text_encoder(f"bert-base@{tmp_path}")


def test_loading_is_silent_and_restores_the_librarys_logging(
    text_model: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, _ = text_model("clip")  # half of the checkpoint is "unexpected" to either tower
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    build_text_encoder(f"hf:{folder}")
    build_image_encoder(f"hf:{folder}")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert isinstance(CLIPModel.from_pretrained(folder), CLIPModel)
