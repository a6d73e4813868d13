"""The patches that labels are measured against: whose they are, and which a further training keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.features.dataset import LiveSource
from fusioner.model.checkpoint import load_model
from fusioner.training.build import build_network
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import build_corpus, open_part
from fusioner.training.reference import draw_reference
from fusioner.training.train import Run, train


@pytest.fixture
def measured(tiny: Callable[..., TrainConfig], clip_folder: Path) -> TrainConfig:
    encoders = f"clip-vit-b16@{clip_folder}+effnet-lite2"
    text, options = "minilm-embedded", {"similarity": "posterior", "affinity": True, "reference": 30, "direct": True}
    return tiny(image_encoder=encoders, text_encoder=text, resolution=64, **options)


@torch.no_grad()
@pytest.mark.parametrize("count", [5, 30])
def test_each_place_holds_a_patch_of_a_training_image(voc_tree: Path, measured: TrainConfig, count: int) -> None:
    """Of 24 images: five give one patch each, or all give one or two."""
    config = replace(measured, reference=count)
    corpus = build_corpus([open_part("pascal", voc_tree)], "images")
    image, text = build_image_encoder(config.image_encoder), build_text_encoder(config.text_encoder)
    model, source = build_network(config, image, text), LiveSource(corpus.parts[0].data, image, config.resolution)
    draw_reference(model, corpus, [source], seed=3)
    places = model.get_buffer("similarity.reference")
    assert places.shape == (1000, count)
    patches = [model.split(source.batch([(e.item, 0)])[0])[1][0].flatten(1) for e in corpus.examples]
    hits = torch.tensor([[(own - place[:, None]).abs().amax(0).min() < 1e-5 for own in patches] for place in places.T])
    assert hits.any(1).all()
    drawn = hits.sum(0)
    assert (drawn > 0).sum() == min(count, 24)
    assert drawn.max() <= -(-count // 24)


def test_a_further_training_keeps_what_its_start_was_measured_against(
    voc_tree: Path, measured: TrainConfig, tmp_path: Path
) -> None:
    def run(name: str, seed: int, initial: Path | None = None) -> torch.Tensor:
        where = Run(tmp_path / name, device="cpu", initial=initial)
        train([open_part("pascal", voc_tree)], replace(measured, seed=seed), where)
        model, card = load_model(tmp_path / name / "last.safetensors")
        assert card.config.reference == 30
        return model.get_buffer("similarity.reference")

    first = run("first", 0)
    assert torch.equal(run("further", 1, tmp_path / "first" / "last.safetensors"), first)
    assert not torch.equal(run("other", 1), first)


def test_a_further_training_has_the_shape_of_its_start(voc_tree: Path, measured: TrainConfig, tmp_path: Path) -> None:
    """Whatever the preset has become meanwhile."""
    part, weights = open_part("pascal", voc_tree), tmp_path / "first" / "last.safetensors"
    before = replace(measured, reference=0, direct=False, width=24, decoder_widths=(12, 8), logit_bias=True)
    train([part], before, Run(tmp_path / "first", device="cpu"))
    train([part], replace(measured, memory=True), Run(tmp_path / "further", device="cpu", initial=weights))
    first, further = (load_model(tmp_path / name / "last.safetensors")[1].config for name in ("first", "further"))
    assert further == first
