"""Test the presets for downloaded encoders on tiny random ones of the same architectures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    AutoTokenizer,
    Dinov2Config,
    Dinov2Model,
    Tipsv2Config,
    Tipsv2Model,
    Tipsv2TextConfig,
    Tipsv2VisionConfig,
)

from fusioner.cli.main import main
from fusioner.encoders.registry import pending_download, space_mismatch
from fusioner.loading import load
from fusioner.training.presets import PRESETS

BODY: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**BODY, image_size=28, patch_size=7)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tips_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tips")
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    text = Tipsv2TextConfig(**BODY, intermediate_size=32, vocab_size=len(tokenizer), max_position_embeddings=16)
    vision = Tipsv2VisionConfig(**BODY, image_size=32, patch_size=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Tipsv2Model(Tipsv2Config(vision_config=vision, text_config=text)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("preset", ["proxy", "aligned"])
def test_a_preset_trains_and_predicts(
    preset: str,
    voc_tree: Path,
    clip_folder: Path,
    dinov2_folder: Path,
    tips_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "proxy": (f"dinov2-b@{dinov2_folder}+maskclip-vit-b16@{clip_folder}", f"clip-text-b16@{clip_folder}"),
        "aligned": (f"tipsv2-b@{tips_folder}", f"tipsv2-text-b@{tips_folder}"),
    }
    image, text = names[preset]
    assert "+".join(part.partition("@")[0] for part in image.split("+")) == PRESETS[preset].model.image_encoder
    words = ["train", "pascal", "--root", voc_tree, "--preset", preset, "--image-encoder", image]
    words += ["--text-encoder", text, "--resolution", 56, "--steps", 2, "--val-images", 1, "--device", "cpu"]
    words += ["--cache", tmp_path / "cache", "--out", tmp_path / "run"]
    assert main([*map(str, words)]) == 0
    output = capsys.readouterr().err
    assert "used with --similarity cosine" in output
    assert "downloading" not in output
    segmenter = load(tmp_path / "run" / "best.safetensors", "cpu")
    assert segmenter.card.config.affinity_refinement
    assert segmenter.card.config.image_dim == {"proxy": 16, "aligned": 0}[preset]
    assert segmenter(voc_tree / "VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg", ["cat", "dog"]).labels == ("cat", "dog")


def test_a_preset_lists_its_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    output = {
        name: pending_download(preset.model.image_encoder, preset.model.text_encoder)
        for name, preset in PRESETS.items()
    }
    assert output == {
        "small": "",
        "paper": "openai/clip-vit-large-patch14 (1711 MB)",
        "proxy": "facebook/dinov2-base, openai/clip-vit-base-patch16 (945 MB)",
        "aligned": "google/tipsv2-b14 (785 MB)",
    }
    assert pending_download("c-radiov3-b", "minilm-embedded") == "nvidia/C-RADIOv3-B (about 393 MB)"
    assert pending_download(f"c-radiov3-b+dinov2-s@{tmp_path}", "hf:a/b") == (
        "nvidia/C-RADIOv3-B, a/b (about 393 MB and more)"
    )
    assert pending_download("proxyclip:clip-vit-b16+dinov2-b", "clip-text-b16").endswith("(945 MB)")


def test_encoders_of_presets_share_an_embedding_space() -> None:
    assert not any(space_mismatch(preset.model.image_encoder, preset.model.text_encoder) for preset in PRESETS.values())
