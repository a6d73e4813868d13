"""Encoder names, concatenated encoders, and frozen weights."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusioner.encoders.base import ConcatEncoder, ImageEncoder, TextEncoder
from fusioner.encoders.registry import (
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    available_encoders,
    build_image_encoder,
    build_text_encoder,
    split_list,
)
from fusioner.errors import FusionerError

Make = Callable[[str], tuple[Path, Any]]


def test_the_names_are_all_there() -> None:
    models = available_encoders()
    assert models == {"image": list(IMAGE_ENCODERS), "text": list(TEXT_ENCODERS)}


def test_listing_the_names_loads_no_torch() -> None:
    code = "import sys, fusioner; fusioner.available_encoders(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_unknown_names_suggest_similar_ones() -> None:
    with pytest.raises(FusionerError, match=r"unknown image encoder 'dinov2-z'; did you mean .*dinov2-s"):
        build_image_encoder("dinov2-z")
    with pytest.raises(FusionerError, match="unknown text encoder 'mini-lm'; did you mean minilm"):
        build_text_encoder("mini-lm")
    with pytest.raises(FusionerError, match=r"'q'; see `fusioner models`"):
        build_image_encoder("q")
    with pytest.raises(FusionerError, match="'bert-base' is a text encoder, not one for images"):
        build_image_encoder("bert-base")
    with pytest.raises(FusionerError, match="unknown image encoder ''"):
        build_image_encoder("dinov2-s-embedded+")


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=f"dinov2-s: there is no {tmp_path}/none; write dinov2-s@"):
        build_image_encoder(f"dinov2-s@{tmp_path}/none")
    with pytest.raises(FusionerError, match="no path after the @"):
        build_text_encoder("minilm@")
    with pytest.raises(FusionerError, match="ships with fusioner and takes no folder"):
        build_text_encoder(f"minilm-embedded@{tmp_path}")


def test_a_folder_of_the_architecture(image_model: Make, text_model: Make, implements: Any) -> None:
    images = {"clip-vit-b16": "clip", "dino-vit-s16": "vit", "dinov2-b": "dinov2_with_registers"}
    images |= {"dinov3-s": "dinov3_vit", "mae-vit-b": "vit_mae", "siglip2-b16": "siglip"}
    for name, kind in images.items():
        encoder = build_image_encoder(f"{name}@{image_model(kind)[0]}")
        assert implements(encoder, ImageEncoder)
        assert encoder.name == f"{name}@{image_model(kind)[0]}"
    texts = {"clip-text-l14": "clip", "bert-large": "bert", "minilm": "bert", "roberta-base": "roberta"}
    texts |= {"mpnet": "mpnet", "siglip2-text-b16": "siglip"}
    for name, kind in texts.items():
        encoder = build_text_encoder(f"{name}@{text_model(kind)[0]}")
        assert implements(encoder, TextEncoder)
        assert encoder.name == f"{name}@{text_model(kind)[0]}"


def test_a_relative_folder_becomes_a_name_for_any_directory(
    image_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").symlink_to(image_model("dinov2")[0])
    monkeypatch.chdir(tmp_path)
    names = [build_image_encoder(name).name for name in ("dinov2-s@here", "hf:here")]
    assert names == [f"dinov2-s@{tmp_path}/here", f"hf:{tmp_path}/here"]
    monkeypatch.chdir("/")
    assert build_image_encoder(names[0]).name == names[0]


def test_lists_split_at_names_only() -> None:
    assert split_list("dinov2-s+clip-vit-b16") == ["dinov2-s", "clip-vit-b16"]
    assert split_list("dinov2-s@/a+b/c + mae-vit-b") == ["dinov2-s@/a+b/c", "mae-vit-b"]
    assert split_list("hf:/x+y+hf:a/b+dinov2-s@/p") == ["hf:/x+y", "hf:a/b", "dinov2-s@/p"]
    assert split_list("dinov2-s+typo") == ["dinov2-s", "typo"]


@pytest.fixture
def pair(image_model: Make, tmp_path: Path) -> ConcatEncoder:
    """Concatenate encoders of strides 8 and 16 (a ViT saved here), whose grids differ in size."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    built = build_image_encoder(f"dinov2-s@{image_model('dinov2')[0]}+hf:{tmp_path}")
    assert isinstance(built, ConcatEncoder)
    return built


def test_a_list_is_its_parts_on_the_first_grid(pair: ConcatEncoder) -> None:
    first, second = (build_image_encoder(name) for name in pair.name.split("+"))
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    tokens = pair(images)
    assert (pair.dim, pair.stride) == (52, 8)
    assert tokens.shape == (2, 52, 4, 6)
    resampled = F.interpolate(second(images), size=(4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(tokens[:, :32] * 2**0.5, first(images))
    torch.testing.assert_close(tokens[:, 32:] * 2**0.5, F.normalize(resampled, dim=1))
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(2, 4, 6))


def test_a_list_passes_its_normalisation_on(pair: ConcatEncoder) -> None:
    parts: Any = list(pair.encoders)
    parts[1].mean = (0.5, 0.5, 0.5)
    before = pair.fingerprint()
    pair.mean, pair.std = pair.mean, pair.std  # assigning the same values changes nothing
    assert parts[1].mean == (0.5, 0.5, 0.5)
    assert pair.fingerprint() == before
    pair.mean = (0.1, 0.2, 0.3)
    assert pair.mean == parts[0].mean == parts[1].mean == (0.1, 0.2, 0.3)
    assert pair.fingerprint() != before


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(FusionerError, match="at least one"):
        ConcatEncoder([])


class Parent(nn.Module):
    """A model as built by training: a trained layer on frozen tokens and frozen text."""

    def __init__(self, image: Any, text: Any) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.layer = nn.Linear(image.dim, text.dim)

    def forward(self, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
        return self.layer(self.image(images).flatten(2).transpose(1, 2)) @ self.text(texts).T


@pytest.mark.parametrize("kinds", [("dinov2", "bert"), ("clip", "clip"), ("pair", "siglip")])
def test_encoders_are_frozen(
    kinds: tuple[str, str], image_model: Make, text_model: Make, request: pytest.FixtureRequest
) -> None:
    image = (
        request.getfixturevalue("pair") if kinds[0] == "pair" else build_image_encoder(f"hf:{image_model(kinds[0])[0]}")
    )
    parent = Parent(image, build_text_encoder(f"hf:{text_model(kinds[1])[0]}"))
    before = {key: value.clone() for key, value in parent.state_dict().items()}
    fingerprints = parent.image.fingerprint(), parent.text.fingerprint()
    parent.train()
    assert parent.layer.training
    for module in [*parent.image.modules(), *parent.text.modules()]:
        assert not module.training
    optimizer = torch.optim.AdamW(parent.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        scores = parent(torch.rand(2, 3, 32, 48), ["cat", "the red sofa"])
        scores.square().mean().backward()
        optimizer.step()
    for key, value in parent.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("layer."))
    frozen = [*parent.image.parameters(), *parent.text.parameters()]
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    parent.image._digest = parent.text._digest = None
    assert (parent.image.fingerprint(), parent.text.fingerprint()) == fingerprints


def test_an_image_that_requires_gradients_gets_none(image_model: Make) -> None:
    encoder = build_image_encoder(f"hf:{image_model('vit')[0]}")
    assert not encoder(torch.rand(1, 3, 16, 16, requires_grad=True)).requires_grad
