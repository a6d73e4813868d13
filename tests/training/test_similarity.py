"""Test that every encoder pair trains, with `similarity = "auto"` as the best supported one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.errors import FusionerError
from fusioner.loading import load
from fusioner.training.build import build_network, resolve_similarity, supported_similarities
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import open_split
from fusioner.training.train import train
from fusioner.training.trainer import RunConfig

Tiny = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("image", "text", "supported"),
    [
        ("effnet-lite2", "minilm-embedded", ("posterior", "none")),
        ("dinov2-s-embedded+effnet-lite2", "minilm-embedded", ("posterior", "none")),
        ("dinov2-s-embedded", "minilm-embedded", ("none",)),
        ("clip-vit-b16@{clip}", "clip-text-b16@{clip}", ("cosine", "none")),
        ("clip-vit-b16@{clip}", "minilm-embedded", ("none",)),
    ],
)
def test_auto_is_the_best_supported_similarity(
    image: str, text: str, supported: tuple[str, ...], tiny: Tiny, clip_folder: Path
) -> None:
    image, text = image.format(clip=clip_folder), text.format(clip=clip_folder)
    config = tiny(
        image_encoder=image, text_encoder=text, similarity="auto", hypernyms=True, affinity_refinement=True,
        closed_set_head=True,
    )  # fmt: skip
    encoders: tuple[Any, Any] = build_image_encoder(image), build_text_encoder(text)
    assert supported_similarities(*encoders) == supported
    resolved = resolve_similarity(config, *encoders)
    assert resolved.model.similarity == supported[0]
    assert resolved.model.affinity_refinement is (supported[0] != "none")
    assert resolved.model.closed_set_head is resolved.model.hypernyms is (supported[0] == "posterior")
    model = build_network(config, *encoders, 3)
    assert model.config.similarity == supported[0]
    assert model.config.visual_dim + ("+" in image) * 1000 == encoders[0].dim
    for similarity in {"posterior", "cosine"} - set(supported):
        with pytest.raises(FusionerError, match=f"--similarity {similarity} is not supported by"):
            build_network(config.override(similarity=similarity), *encoders)


@pytest.mark.parametrize(
    ("image", "text", "similarity"),
    [
        ("effnet-lite2", "minilm-embedded", "posterior"),
        ("dinov2-s-embedded", "minilm-embedded", "none"),
        ("clip-vit-b16@{clip}", "clip-text-b16@{clip}", "cosine"),
    ],
)
def test_a_single_encoder_trains_and_predicts(
    image: str, text: str, similarity: str, voc_tree: Path, clip_folder: Path, tiny: Tiny, tmp_path: Path, capsys: Any
) -> None:
    names = {"image_encoder": image.format(clip=clip_folder), "text_encoder": text.format(clip=clip_folder)}
    config = tiny(**names, similarity="auto", affinity_refinement=True, resolution=64, steps=2)
    train([open_split("pascal", voc_tree)], config, RunConfig(tmp_path, device="cpu"))
    assert (f"used with --similarity {similarity}" in capsys.readouterr().err) is (similarity != "posterior")
    segmenter = load(tmp_path / "best.safetensors", "cpu")
    assert segmenter.card.training["settings"]["model"]["similarity"] == similarity
    assert segmenter(voc_tree / "VOCdevkit/VOC2012/JPEGImages/2007_000000.jpg", ["cat", "dog"]).labels
