"""Load published weights in every layout of hub repositories, served by a hub on 127.0.0.1."""

import json
import logging
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

from fusioner.cli import main as cli
from fusioner.encoders.hub import download_megabytes
from fusioner.encoders.image import IMAGE_BACKBONES
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.encoders.text import TEXT_BACKBONES
from fusioner.errors import FusionerError

Make = Callable[[str], tuple[Path, Any]]
IMAGE_KINDS = [kind for kind in IMAGE_BACKBONES if not kind.endswith("_vision_model")]
TEXT_KINDS = [kind for kind in TEXT_BACKBONES if not kind.endswith("_text_model")]
LAYOUTS = ["safetensors", "sharded safetensors", "pull request", "sharded pull request", "pickle", "sharded pickle"]
SHARDED = "sharded safetensors"
"""Tested with every model type; the other layouts with CLIP only, as reading files does not depend on the type."""
CONVERTER = ("SFconvertbot", "Adding `safetensors` variant of this model")
CLIP_B32, TIMM_B32 = "openai/clip-vit-base-patch32", "timm/vit_base_patch32_clip_224.openai"
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
TEXTS = ["cat", "a photo of the red sofa ."]


def settings_only(folder: Path, target: Path) -> Path:
    """Copy a folder without its weights."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("model*")))


def serve(hub: Any, repository: str, layout: str, folder: Path, model: Any, scratch: Path) -> None:
    """Publish a model in a layout."""
    main = settings_only(folder, scratch / "main")
    hub.add(repository, main)
    target = scratch / "pull-request" if "pull" in layout else main
    if "pickle" not in layout:
        model.save_pretrained(target, max_shard_size="20kB" if "sharded" in layout else "1GB")
        (scratch / "pull-request" / "config.json").unlink(missing_ok=True)
    elif "sharded" in layout:
        tensors = list(model.state_dict().items())
        parts = {f"pytorch_model-0000{n}-of-00002.bin": dict(tensors[n - 1 :: 2]) for n in (1, 2)}
        for name, part in parts.items():
            torch.save(part, main / name)
        index = {key: name for name, part in parts.items() for key in part}
        (main / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        torch.save(model.state_dict(), main / "pytorch_model.bin")
    if "pull" in layout:
        torch.save(model.state_dict(), main / "pytorch_model.bin")
        hub.add(repository, target, "refs/pr/15")
        hub.discussions[repository] = [(15, *CONVERTER, "open")]
    assert bool(list(target.glob("*-of-*"))) == ("sharded" in layout)


def cases(kinds: list[str]) -> list[tuple[str, str]]:
    """Return pairs of model type and layout."""
    return [(kind, layout) for kind in kinds for layout in LAYOUTS if layout == SHARDED or kind == "clip"]


@pytest.mark.parametrize(("kind", "layout"), cases(IMAGE_KINDS))
def test_every_image_model_type_and_layout(hub: Any, image_model: Make, tmp_path: Path, kind: str, layout: str) -> None:
    folder, model = image_model(kind)
    serve(hub, "someone/published", layout, folder, model, tmp_path)
    encoder = build_image_encoder("hf:someone/published")
    assert torch.equal(encoder(IMAGES), build_image_encoder(f"hf:{folder}")(IMAGES))
    hub.requests.clear()
    assert build_image_encoder("hf:someone/published").fingerprint() == encoder.fingerprint()
    assert hub.requests == [], "the second time comes from the cache"


@pytest.mark.parametrize(("kind", "layout"), cases(TEXT_KINDS))
def test_every_text_model_type_and_layout(hub: Any, text_model: Make, tmp_path: Path, kind: str, layout: str) -> None:
    folder, model = text_model(kind)
    serve(hub, "someone/published", layout, folder, model, tmp_path)
    encoder = build_text_encoder("hf:someone/published")
    assert torch.equal(encoder(TEXTS), build_text_encoder(f"hf:{folder}")(TEXTS))
    hub.requests.clear()
    assert build_text_encoder("hf:someone/published").fingerprint() == encoder.fingerprint()
    assert hub.requests == [], "the second time comes from the cache"


def whole_openai(openai: Any, model: Any) -> dict[str, Tensor]:
    """Return the state of a CLIP as published by open_clip."""
    visual = {f"visual.{key}": value for key, value in openai.visual(model).items()}
    return {key: value.detach().clone().contiguous() for key, value in {**visual, **openai.text(model)}.items()}


def test_open_clips_file_where_the_repository_has_only_a_pickle(
    hub: Any, text_model: Make, openai: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = text_model("clip")
    hub.add(CLIP_B32, settings_only(folder, tmp_path / "main"))
    (tmp_path / "main" / "pytorch_model.bin").write_bytes(b"never read")
    (tmp_path / "timm").mkdir()
    save_file(whole_openai(openai, model), tmp_path / "timm" / "open_clip_model.safetensors")
    hub.add(TIMM_B32, tmp_path / "timm")
    for name, other in (("clip-vit-b32", "clip-vit-b16"), ("maskclip-vit-b32", "maskclip-vit-b16")):
        torch.testing.assert_close(build_image_encoder(name)(IMAGES), build_image_encoder(f"{other}@{folder}")(IMAGES))
    text = build_text_encoder("clip-text-b32")
    torch.testing.assert_close(text(TEXTS), build_text_encoder(f"hf:{folder}")(TEXTS))
    assert f"downloading open_clip_model.safetensors of {TIMM_B32}" in caplog.text
    hub.requests.clear()
    assert build_text_encoder("clip-text-b32").fingerprint() == text.fingerprint()
    assert hub.requests == []
    with (tmp_path / "timm" / "open_clip_model.safetensors").open("ab") as file:
        file.truncate(3_000_000)
    assert download_megabytes(CLIP_B32, TIMM_B32) == 3, "not the size of the file to be read"
    assert download_megabytes(CLIP_B32) == 0
    assert download_megabytes("nobody/nothing") is None


def test_the_pickle_comes_last_and_is_logged(
    hub: Any, text_model: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = text_model("clip")
    main = settings_only(folder, tmp_path / "main")
    torch.save(model.state_dict(), main / "pytorch_model.bin")
    hub.add(CLIP_B32, main)  # without the repository of timm
    with caplog.at_level(logging.INFO, logger="fusioner"):
        encoder = build_image_encoder("clip-vit-b32")
    assert torch.equal(encoder(IMAGES), build_image_encoder(f"hf:{folder}")(IMAGES))
    assert f"downloading pytorch_model.bin of {CLIP_B32}; only its tensors are read" in caplog.text
    assert any("reading" in line and line.endswith("pytorch_model.bin") for line in caplog.messages)


def test_only_the_converters_open_pull_request_is_read(hub: Any, image_model: Make, tmp_path: Path) -> None:
    folder, model = image_model("vit")
    main = settings_only(folder, tmp_path / "main")
    torch.save(model.state_dict(), main / "pytorch_model.bin")
    hub.add("facebook/dino-vits16", main)
    author, title = CONVERTER
    wrong = [(1, "someone", title, "open"), (2, author, "Update", "open"), (3, author, title, "closed")]
    hub.discussions["facebook/dino-vits16"] = wrong  # reading their revisions, which are not served, would fail
    assert torch.equal(build_image_encoder("dino-vit-s16")(IMAGES), build_image_encoder(f"hf:{folder}")(IMAGES))
    assert not any("refs" in request for request in hub.requests)


def test_code_in_a_pickle_is_refused(hub: Any, image_model: Make, tmp_path: Path) -> None:
    main = settings_only(image_model("vit")[0], tmp_path / "main")
    torch.save({"weight": print}, main / "pytorch_model.bin")
    hub.add("facebook/dino-vits16", main)
    with pytest.raises(FusionerError, match=r"pytorch_model\.bin cannot be read: it holds code besides tensors"):
        build_image_encoder("dino-vit-s16")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_is_reported_with_page_and_login(hub: Any, status: int) -> None:
    hub.gated["facebook/dinov3-vits16plus-pretrain-lvd1689m"] = status
    page = r"https://huggingface\.co/facebook/dinov3-vits16plus-pretrain-lvd1689m"
    with pytest.raises(FusionerError, match=rf"accepting its licence: do so at {page} and .*`hf auth login`"):
        build_image_encoder("dinov3-splus")


def test_a_repository_without_weights(hub: Any, image_model: Make, tmp_path: Path) -> None:
    hub.add("someone/empty", settings_only(image_model("vit")[0], tmp_path / "main"))
    with pytest.raises(FusionerError, match=r"someone/empty has no config\.json or none of model\.safetensors"):
        build_image_encoder("hf:someone/empty")


def test_offline_errors_list_the_searched_cache(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FusionerError, match=rf"cannot download facebook/dinov2-small .*cache {constants.HF_HUB_CACHE}"):
        build_image_encoder("dinov2-s")


def test_an_interrupted_download_is_completed(hub: Any, image_model: Make, tmp_path: Path) -> None:
    folder, model = image_model("vit")
    serve(hub, "someone/published", "sharded safetensors", folder, model, tmp_path)
    expected = build_image_encoder("hf:someone/published")(IMAGES)
    shard = next(Path(constants.HF_HUB_CACHE).rglob("model-00001*"))
    shard.resolve().unlink()
    shard.unlink()
    assert torch.equal(build_image_encoder("hf:someone/published")(IMAGES), expected)


def test_a_cache_without_tokenizer_is_completed(hub: Any, text_model: Make) -> None:
    folder, _ = text_model("clip")
    hub.add(CLIP_B32, folder)
    expected = build_text_encoder("clip-text-b32")(TEXTS)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        next(Path(constants.HF_HUB_CACHE).rglob(file)).unlink()
    assert torch.equal(build_text_encoder("clip-text-b32")(TEXTS), expected)


def test_a_fallback_without_the_file_leaves_the_pickle(hub: Any, text_model: Make, tmp_path: Path) -> None:
    folder, model = text_model("clip")
    main = settings_only(folder, tmp_path / "main")
    torch.save(model.state_dict(), main / "pytorch_model.bin")
    hub.add(CLIP_B32, main)
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "README.md").write_text("no weights")
    hub.add(TIMM_B32, tmp_path / "timm")
    assert torch.equal(build_image_encoder("clip-vit-b32")(IMAGES), build_image_encoder(f"hf:{folder}")(IMAGES))


@pytest.mark.parametrize("quick", [True, False])
def test_a_repository_of_open_clip_alone(hub: Any, text_model: Make, openai: Any, tmp_path: Path, quick: bool) -> None:
    """Read heads, activation and normalisation from open_clip's configuration, as LAION and DataComp publish it."""
    body = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    act = {"hidden_act": "quick_gelu" if quick else "gelu"}
    text = {**body, **act, "vocab_size": 21, "max_position_embeddings": 20, "eos_token_id": 20, "bos_token_id": 19}
    vision = {**body, **act, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model: Any = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sizes = {"width": 32, "layers": 2}
    settings = {
        "embed_dim": 24,
        "quick_gelu": quick,
        "vision_cfg": {**sizes, "head_width": 8, "image_size": 32, "patch_size": 8},
        "text_cfg": {**sizes, "heads": 4, "context_length": 20, "vocab_size": 21},
    }
    main = settings_only(text_model("clip")[0], tmp_path / "main")
    (main / "config.json").unlink()
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (main / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": preprocessing}))
    save_file(whole_openai(openai, model), main / "open_clip_model.safetensors")
    hub.add("laion/CLIP", main)
    encoder = build_image_encoder("hf:laion/CLIP")
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    encoder.mean, encoder.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    ids = torch.tensor([[2, 8, 20]])
    with torch.no_grad():
        states = model.vision_model(IMAGES, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        tokens = model.visual_projection(model.vision_model.post_layernorm(states))
        vector = model.text_projection(model.text_model(ids).pooler_output)
    expected = torch.nn.functional.normalize(tokens, dim=-1)
    torch.testing.assert_close(encoder(IMAGES).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    reader: Any = build_text_encoder("hf:laion/CLIP")
    found = torch.nn.functional.normalize(reader.embed(ids, torch.ones_like(ids)), dim=-1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(vector, dim=-1), rtol=1e-4, atol=1e-5)


def test_no_normalisation_is_honoured(image_model: Make, tmp_path: Path) -> None:
    folder = settings_only(image_model("vit")[0], tmp_path / "vit")
    (folder / "model.safetensors").write_bytes((image_model("vit")[0] / "model.safetensors").read_bytes())
    settings = {"do_normalize": False, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    encoder = build_image_encoder(f"hf:{folder}")
    assert (encoder.mean, encoder.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("kind", ["siglip", "clip", "bert"])
def test_texts_are_padded_on_the_right_for_any_tokenizer_setting(text_model: Make, tmp_path: Path, kind: str) -> None:
    folder, _ = text_model(kind)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "left"}))
    torch.testing.assert_close(build_text_encoder(f"hf:{tmp_path}")(TEXTS), build_text_encoder(f"hf:{folder}")(TEXTS))


def test_the_table_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    table = capsys.readouterr().out
    assert "dinov3-s              DINOv3" in table
    assert "accept its licence" in table
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = {row["name"]: row for row in rows}
    assert found["clip-vit-b32"]["download_mb"] == 605
    assert found["dinov3-s"]["gated"]
    assert not found["dinov2-s"]["gated"]
    assert found["minilm-embedded"]["source"] == "in the package"


def test_the_tool_that_checks_the_hub(
    hub: Any, image_model: Make, text_model: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    served = {
        "facebook/dinov2-small": image_model("dinov2")[0],
        "facebook/dinov3-vits16plus-pretrain-lvd1689m": image_model("dinov3_vit")[0],
        "facebook/metaclip-2-worldwide-b16": text_model("metaclip_2")[0],
        "google/siglip2-base-patch16-224": text_model("siglip")[0],
        "openai/clip-vit-base-patch32": text_model("clip")[0],
        "sentence-transformers/all-MiniLM-L6-v2": text_model("bert")[0],
    }
    for repository, folder in served.items():
        hub.add(repository, folder)
    names = ["dinov2-s", "dinov3-splus", "metaclip2-b16", "metaclip2-text-b16", "siglip2-b16", "siglip2-text-b16"]
    names += ["clip-vit-b32", "maskclip-vit-b32", "clip-text-b32", "minilm", "minilm-embedded"]
    names += ["mocov3-vit-s", "bert-base"]
    tool = runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "check_hub.py"))
    verbosity = transformers_logging.get_verbosity()
    try:
        assert tool["main"](names) == 1
    finally:
        transformers_logging.set_verbosity(verbosity)
    output = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1] for line in output.splitlines()[1:]}
    loaded = dict.fromkeys(("maskclip-vit-b32", "minilm-embedded"), "loaded")
    expected = dict.fromkeys(names, "ok") | loaded | {"mocov3-vit-s": "skipped", "bert-base": "failed"}
    assert lines == expected, output
