"""The baselines and the inputs that they may use."""

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusioner.model.checkpoint import ModelCard, load_model, save_model
from fusioner.model.config import TRAINING_FREE, UNDECODED, FusionerConfig, Method
from fusioner.model.fusioner import Fusioner

SHAPE: dict[str, Any] = {
    "image_dim": 12,
    "text_dim": 10,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "decoder_widths": (8, 8),
}


def unit(*shape: int, dim: int = 1) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=dim)


def build(method: Method, **changes: Any) -> Fusioner:
    torch.manual_seed(0)
    aligned = {"similarity": "cosine", "similarity_dim": 10} if method in TRAINING_FREE else {}
    model = Fusioner(FusionerConfig(method=method, **(SHAPE | aligned | changes))).eval()
    for weight in model.parameters():  # large compared to initial weights, so that results differ
        torch.nn.init.normal_(weight, std=0.5)
    for buffer in model.buffers():
        if buffer.dim():
            buffer.copy_(unit(*buffer.shape, dim=-1))
    return model


def tokens(model: Fusioner, b: int = 2, gh: int = 3, gw: int = 4) -> Tensor:
    return unit(b, model.config.image_dim + model.config.similarity_dim, gh, gw)


@pytest.mark.parametrize("method", get_args(Method))
@torch.no_grad()
def test_any_labels_any_grid_any_size_and_back_from_the_file(method: Method, tmp_path: Any) -> None:
    model = build(method)
    image, labels = tokens(model), unit(2, 3, 10, dim=-1)
    at_grid = model(image, labels)
    assert at_grid.shape == (2, 3, 3, 4) if method in UNDECODED else (2, 3, 6, 8)
    assert model(image, labels[:, :1], (17, 33)).shape == (2, 1, 17, 33)
    save_model(tmp_path / "m.safetensors", model, ModelCard(model.config, "image", "text"))
    again, card = load_model(tmp_path / "m.safetensors")
    assert card.config.method == method
    torch.testing.assert_close(again(image, labels), at_grid)


@pytest.mark.parametrize("method", get_args(Method))
@torch.no_grad()
def test_independent_labels_do_not_change_each_others_logits(method: Method) -> None:
    model = build(method)
    image, labels = tokens(model), unit(2, 4, 10, dim=-1)
    alone = model(image, labels[:, 2:3])
    assert torch.allclose(model(image, labels)[:, 2:3], alone, atol=1e-4) is model.config.labels_independent
    assert model.config.labels_independent is (method not in ("fusioner", "late", "mask-transformer"))


@pytest.mark.parametrize("method", [m for m in get_args(Method) if m not in TRAINING_FREE])
def test_gradients_reach_every_weight(method: Method) -> None:
    model = build(method, logit_bias=True).train()
    model(tokens(model), unit(2, 3, 10, dim=-1), (8, 8)).square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert not [*build("cosine").parameters()]


@torch.no_grad()
def test_lseg_is_the_cosine_of_a_projected_patch_and_the_text() -> None:
    model = build("lseg", temperature=0.1)
    image, labels = tokens(model), unit(2, 3, 10, dim=-1)
    projected = model.fusion.proj(image[1, :, 2, 3])  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    expected = F.cosine_similarity(projected, labels[1, 2], dim=0) / 0.1
    torch.testing.assert_close(model(image, labels)[1, 2, 2, 3], expected)
    changed = image.clone()
    changed[:, :, 0, 0] = unit(2, 12)
    assert torch.equal(model(changed, labels)[..., 1:, :], model(image, labels)[..., 1:, :])  # per pixel


@torch.no_grad()
def test_segmenter_patches_and_labels_attend_to_each_other_without_a_decoder() -> None:
    model = build("mask-transformer")
    image, labels = tokens(model), unit(2, 3, 10, dim=-1)
    changed = image.clone()
    changed[:, :, 0, 0] = unit(2, 12)
    assert not torch.allclose(model(changed, labels)[..., 2, 3], model(image, labels)[..., 2, 3], atol=1e-4)
    assert model.decoder is None
    assert model.config.logit_bias  # the affine part of its LayerNorm over classes
    up = F.interpolate(model(image, labels), size=(9, 8), mode="bilinear")
    torch.testing.assert_close(model(image, labels, (9, 8)), up)


@torch.no_grad()
def test_blind_returns_the_same_logits_for_any_label() -> None:
    for extra in ({}, {"similarity": "cosine", "similarity_dim": 10}):
        model = build("prompt-ablated", **extra)
        image, labels = tokens(model), unit(2, 3, 10, dim=-1)
        answer = model(image, labels)
        assert torch.equal(answer[:, 0], answer[:, 2])
        assert torch.equal(model(image, unit(2, 3, 10, dim=-1)), answer)
        assert not torch.allclose(model(tokens(model), labels), answer, atol=1e-4)


@torch.no_grad()
def test_cosine_is_standardised_over_reference_words() -> None:
    model = build("cosine")
    assert model.baseline is not None
    model.baseline.zscore_threshold.fill_(1.5)
    image, labels = tokens(model), unit(2, 5, 10, dim=-1)
    patch = F.normalize(image[1, -10:, 2, 1], dim=0)  # the aligned channels come last
    others = model.baseline.reference_words @ patch
    deviations = (labels[1] @ patch - others.mean()) / others.std()
    torch.testing.assert_close(model(image, labels)[1, :, 2, 1], deviations - 1.5)
    assert (labels[1] @ patch).argmax() == model(image, labels)[1, :, 2, 1].argmax()


@torch.no_grad()
def test_a_posterior_becomes_the_mean_of_its_names() -> None:
    model = build("cosine", image_dim=0, similarity="posterior", similarity_dim=6)
    assert model.baseline is not None
    p = torch.tensor([0.7, 0.3, 0, 0, 0, 0]).view(1, 6, 1, 1)
    label = F.normalize(0.7 * model.baseline.anchors[0] + 0.3 * model.baseline.anchors[1], dim=0)
    best = model(F.normalize(p, dim=1), label[None, None])
    assert (best >= model(F.normalize(p, dim=1), unit(1, 50, 10, dim=-1))).all()


@torch.no_grad()
def test_background_baseline_predicts_no_label() -> None:
    model = build("empty")
    assert (model(tokens(model), unit(2, 3, 10, dim=-1)).sigmoid() < 1e-6).all()
