from typing import Any

import pytest
import torch

from fusioner.errors import FusionerError
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.training.config import TrainConfig, flatten
from fusioner.training.optim import build_optimizer, set_rates
from fusioner.training.presets import PAPER, PRESETS, SMALL, preset

SIZES: dict[str, Any] = {"image_dim": 8, "text_dim": 6, "width": 16, "layers": 1, "heads": 2, "decoder_widths": (8, 8)}


@pytest.fixture
def model() -> Fusioner:
    return Fusioner(FusionerConfig(**SIZES, logit_bias=True, similarity="cosine", similarity_dim=6))


def test_each_parameter_is_in_the_group_of_the_official_recipe(model: Fusioner) -> None:
    optimizer = build_optimizer(model, PAPER.optim)
    group_of = {id(p): group["name"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named) == len(group_of)
    for name, parameter in named.items():
        expected = "decoder" if name.startswith("decoder.") else "weights" if parameter.dim() >= 2 else "others"
        assert group_of[id(parameter)] == expected, name


def test_learning_rates_follow_the_official_schedule(model: Fusioner) -> None:
    optimizer = build_optimizer(model, PAPER.optim)
    steps = 5100
    set_rates(optimizer, PAPER.optim, 0, steps)
    weights, others, decoder = optimizer.param_groups
    assert (weights["lr"], decoder["lr"]) == (0, 1e-3)
    assert (weights["weight_decay"], others["weight_decay"], decoder["weight_decay"]) == (pytest.approx(0.01), 0, 0)
    set_rates(optimizer, PAPER.optim, 100, steps)
    assert (weights["lr"], others["lr"], decoder["lr"]) == (1e-3, 1e-3, 1e-3)
    set_rates(optimizer, PAPER.optim, steps, steps)
    assert weights["lr"] == pytest.approx(2e-6)
    assert weights["weight_decay"] == pytest.approx(0.4)
    assert decoder["lr"] == 1e-3
    set_rates(optimizer, SMALL.optim, steps, steps)
    assert decoder["lr"] == pytest.approx(2e-6)


def test_the_decoders_group_is_plain_adam() -> None:
    torch.manual_seed(0)
    model = Fusioner(FusionerConfig(**SIZES, decoder_norm="layer"))  # gradients above noise
    reference = Fusioner(model.config)
    reference.load_state_dict(model.state_dict())
    assert model.decoder is not None
    assert reference.decoder is not None
    ours, adam = (
        build_optimizer(model, PAPER.optim),
        torch.optim.Adam(reference.decoder.parameters(), lr=PAPER.optim.decoder_lr),
    )
    for step in range(3):
        tokens, text = torch.randn(2, 8, 4, 4), torch.randn(2, 1, 6)
        set_rates(ours, PAPER.optim, 0, 5100)  # the fusion's rate is 0, so that both get the same features
        for network, optimizer in ((model, ours), (reference, adam)):
            optimizer.zero_grad()
            network(tokens, text).square().mean().backward()
            optimizer.step()
        for actual, expected in zip(model.decoder.parameters(), reference.decoder.parameters(), strict=True):
            assert torch.allclose(actual, expected, atol=1e-6), step


def test_presets_have_the_official_numbers() -> None:
    assert TrainConfig() == PAPER
    official = {
        "image_encoder": "clip-vit-l14", "resolution": 224, "width": 512, "layers": 12, "heads": 8, "mlp_ratio": 4.0,
        "dropout": 0.0, "temperature": 0.07, "decoder_widths": [512] * 4, "lr": 1e-3, "min_lr": 2e-6, "beta1": 0.9,
        "weight_decay": 0.01, "weight_decay_end": 0.4, "decoder_lr": 1e-3, "batch_size": 32, "prompts": 1,
        "sampling": "pairs", "augment_prob": 0.5, "min_crop_scale": 0.5, "loss_stride": 1, "ce_weight": 0.0, "ema": 0.0,
    }  # fmt: skip
    assert {name: flatten(PAPER.to_dict())[name] for name in official} == official
    assert PAPER.optim.epochs == 10 + 500
    assert round(PAPER.optim.warmup * 510 * 396) == 10 * 396  # fold 0 has 396 batches
    assert TrainConfig().merge(SMALL.to_dict()) == SMALL
    assert preset("small") is SMALL
    with pytest.raises(FusionerError, match="choose small, paper"):
        preset("large")
    assert set(PRESETS) == {"small", "paper", "proxy", "aligned"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lr": -1.0}, "--lr must be within"),
        ({"precision": "8"}, "--precision is one of 32, bf16, 16"),
        ({"batch_size": 0}, "--batch-size"),
        ({"decoder_widths": (8, "x")}, "--decoder-widths is a list of int"),
        ({"steps": 1.5}, "--steps is a value of type int"),
        ({"logit_bias": 1}, "--logit-bias is a value of type bool"),
        ({"colour": 1}, "there is no setting 'colour'"),
        ({"steps": 0, "epochs": 0}, "--steps or --epochs"),
    ],
)
def test_invalid_settings_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FusionerError, match=sentence):
        PAPER.override(**changes)
    assert PAPER.override(lr=1).optim.lr == 1.0
