"""CLIP models in the file format of open_clip, named `openclip:...`."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from fusioner.encoders.image import ClipVision
from fusioner.encoders.proxyclip import ProxyEncoder
from fusioner.encoders.registry import METHODS, build_image_encoder, build_text_encoder, space_mismatch, split_list
from fusioner.encoders.training_free import build_pair, published_protocol
from fusioner.errors import FusionerError

Make = Callable[..., tuple[Path, Any]]
IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
TEXTS = ["cat", "a photo of the red sofa ."]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "mlp_ratio": 2.5, "patch_size": 8}
TEXT = {"context_length": 20, "layers": 2, "width": 32, "heads": 4, "mlp_ratio": 2}


def make_clip(activation: str, vocabulary: int) -> Any:
    """Return a CLIP of transformers with the sizes above."""
    body = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": activation}
    vision = {**body, "intermediate_size": 80, "image_size": 32, "patch_size": 8}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text = {**body, "intermediate_size": 64, "vocab_size": vocabulary, "max_position_embeddings": 20, **ends}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture(params=["quick_gelu", "gelu"])
def published(request: pytest.FixtureRequest, text_model: Make, openai: Any, tmp_path: Path) -> tuple[Path, Any]:
    """Return (folder as uploaded by open_clip, model of transformers); other weights lie beside open_clip's file."""
    folder, other = text_model("clip")
    shutil.copytree(folder, tmp_path / "repo", dirs_exist_ok=True)
    vocabulary = other.config.text_config.vocab_size
    model = make_clip(request.param, vocabulary)
    state = {f"visual.{key}": value for key, value in openai.visual(model).items()} | openai.text(model)
    save_file(
        {key: value.detach().clone().contiguous() for key, value in state.items()},
        tmp_path / "repo" / "open_clip_model.safetensors",
    )
    settings = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": vocabulary}}
    settings |= {"quick_gelu": True} if request.param == "quick_gelu" else {}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    content = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (tmp_path / "repo" / "open_clip_config.json").write_text(json.dumps(content))
    return tmp_path / "repo", model


@torch.no_grad()
def test_tokens_and_texts_are_the_librarys(published: tuple[Path, Any]) -> None:
    folder, model = published
    encoder: Any = build_image_encoder(f"openclip:{folder}")
    assert (encoder.name, encoder.mean, encoder.std) == (f"openclip:{folder}", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    pixels = (IMAGES - torch.tensor(encoder.mean).view(3, 1, 1)) / torch.tensor(encoder.std).view(3, 1, 1)
    states = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
    tokens = F.normalize(model.visual_projection(model.vision_model.post_layernorm(states)), dim=-1)
    torch.testing.assert_close(encoder(IMAGES).flatten(2).transpose(1, 2), tokens)
    text: Any = build_text_encoder(f"openclip:{folder}")
    ids = text._tokenizer(TEXTS, padding="longest", padding_side="right", return_tensors="pt")["input_ids"]
    assert text.model.config.eos_token_id == model.config.text_config.eos_token_id
    vectors = F.normalize(text.model(input_ids=ids).text_embeds, dim=-1)
    projected = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    torch.testing.assert_close(vectors, F.normalize(projected, dim=-1))
    torch.testing.assert_close(text(TEXTS), vectors)


def test_methods_by_name(published: tuple[Path, Any], image_model: Make) -> None:
    folder = published[0]
    name, dino = f"openclip:{folder}", f"dinov2-b@{image_model('dinov2')[0]}"
    plain: Any = build_image_encoder(name)

    def with_attention(attention: Any) -> ClipVision:
        return ClipVision(deepcopy(plain.model), "", plain.mean, plain.std, attention)

    for method in METHODS:
        encoder = build_image_encoder(f"{method}:{name}")
        assert encoder.name == f"{method}:{name}"
        assert torch.equal(encoder(IMAGES), with_attention(method)(IMAGES))
        assert published_protocol(encoder.name, 224) == published_protocol(f"{method}-vit-b16", 224)
    pair, _ = build_pair(f"{dino}+{name}", None)
    assert pair.name == f"proxyclip:{name}+{dino}"
    assert torch.equal(pair(IMAGES), ProxyEncoder(with_attention("values"), build_image_encoder(dino), "")(IMAGES))
    assert split_list(f"dinov2-s+sclip:{name}+b") == ["dinov2-s", f"sclip:{name}+b"]
    assert space_mismatch(f"sclip:{name}", name) == ""


@pytest.mark.parametrize("layout", ["safetensors", "pickle"])
def test_the_hub_sends_only_open_clips_files(
    hub: Any, published: tuple[Path, Any], layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = published
    expected = build_image_encoder(f"openclip:{folder}")(IMAGES)
    if layout == "pickle":
        torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_pytorch_model.bin")
        (folder / "open_clip_model.safetensors").unlink()
    hub.add("laion/some-clip", folder)
    assert torch.equal(build_image_encoder("openclip:laion/some-clip")(IMAGES), expected)
    assert build_text_encoder("openclip:laion/some-clip")(TEXTS).shape == (2, 24)
    assert not any("resolve" in path and "/model.safetensors" in path for path in hub.requests)
    assert ("downloading open_clip_pytorch_model.bin" in caplog.text) is (layout == "pickle")
    hub.requests.clear()
    build_image_encoder("openclip:laion/some-clip")
    assert hub.requests == [], "the second time comes from the cache"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224"}, "vision encoder .* has timm_model_name"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "no transformer of CLIP: it is a ResNet"),
        ("vision_cfg", {"no_ln_pre": True}, "it has no_ln_pre"),
        ("text_cfg", {"hf_model_name": "xlm-roberta-base"}, "text encoder .* has hf_model_name"),
    ],
)
def test_other_networks_are_refused_with_the_difference(
    published: tuple[Path, Any], part: str, change: dict[str, Any], message: str
) -> None:
    file = published[0] / "open_clip_config.json"
    content = json.loads(file.read_text())
    content["model_cfg"][part] |= change
    file.write_text(json.dumps(content))
    build = build_image_encoder if part == "vision_cfg" else build_text_encoder
    with pytest.raises(FusionerError, match=rf"open_clip_config\.json: the .*{message}"):
        build(f"openclip:{published[0]}")
    other = build_text_encoder if part == "vision_cfg" else build_image_encoder
    other(f"openclip:{published[0]}")  # the other tower is CLIP's


def test_missing_packages_and_files_are_one_sentence(hub: Any, text_model: Make, tmp_path: Path) -> None:
    with pytest.raises(
        FusionerError, match=r"no weights \(open_clip_model\.safetensors or open_clip_pytorch_model\.bin"
    ):
        build_image_encoder(f"openclip:{tmp_path}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FusionerError, match=r"has no open_clip_config\.json"):
        build_image_encoder(f"openclip:{tmp_path}")
    hub.add("someone/transformers-only", text_model("clip")[0])
    with pytest.raises(FusionerError, match=r"has no open_clip_config\.json or none of open_clip_model\.safetensors"):
        build_image_encoder("openclip:someone/transformers-only")
    with pytest.raises(FusionerError, match="openclip: names no model; write openclip:OWNER/REPOSITORY"):
        build_text_encoder("openclip:")


def test_names_split_and_pair() -> None:
    assert split_list("openclip:a/b+dinov2-s") == ["openclip:a/b", "dinov2-s"]
    assert split_list("dinov2-s@/x+openclip:/y+z") == ["dinov2-s@/x", "openclip:/y+z"]
    assert space_mismatch("dinov2-s+openclip:a/b", "openclip:a/b") == ""
    problem = space_mismatch("openclip:a/b", "openclip:a/c")
    assert problem == "the text encoder of openclip:a/b is openclip:a/b, not openclip:a/c"
