"""Test the network at any number of labels and any grid, its ablations, and the extensions of the paper."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.similarity import MAX_PARENTS, affinity


def config(**changes: Any) -> FusionerConfig:
    values: dict[str, Any] = {
        "image_dim": 12,
        "text_dim": 10,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "decoder_widths": (8, 8),
    }
    return FusionerConfig(**(values | changes))


def build(**changes: Any) -> Fusioner:
    torch.manual_seed(0)
    model = Fusioner(config(**changes)).eval()
    if "similarity.anchors" in dict(model.named_buffers()):
        model.get_buffer("similarity.anchors").copy_(F.normalize(torch.randn(6, 10), dim=-1))
    if "similarity.hypernyms" in dict(model.named_buffers()):
        reader: Any = model.similarity
        reader.set_hypernyms(F.normalize(torch.randn(3, 10), dim=-1), above([0, 1], [1], [], [1, 2], [], []))
    return model


def above(*kinds: list[int]) -> Tensor:
    return torch.tensor([parents + [3] * (MAX_PARENTS - len(parents)) for parents in kinds])


def tokens(b: int, gh: int, gw: int, posterior: int = 0) -> Tensor:
    visual = F.normalize(torch.randn(b, 12, gh, gw), dim=1)
    if not posterior:
        return visual
    return torch.cat([visual, F.normalize(torch.rand(b, posterior, gh, gw), dim=1)], dim=1)


def text(b: int, k: int) -> Tensor:
    return F.normalize(torch.randn(b, k, 10), dim=-1)


@given(b=st.integers(1, 2), k=st.integers(1, 7), gh=st.integers(2, 6), gw=st.integers(2, 6), ours=st.booleans())
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_any_number_of_labels_on_any_grid(b: int, k: int, gh: int, gw: int, ours: bool) -> None:
    extra = (
        {"similarity": "posterior", "similarity_dim": 6, "num_hypernyms": 3, "affinity_refinement": True}
        if ours
        else {}
    )
    logits = build(**extra)(tokens(b, gh, gw, 6 * ours), text(b, k))
    assert logits.shape == (b, k, 2 * gh, 2 * gw)
    assert logits.abs().max() <= 1 / 0.07 + 1e-3


@torch.no_grad()
def test_logits_have_the_requested_size() -> None:
    assert build()(tokens(1, 3, 5), text(1, 2), (17, 33)).shape == (1, 2, 17, 33)


@torch.no_grad()
def test_late_fusion_joins_text_and_image_in_the_head_only() -> None:
    early, late = build(), build(method="late")
    late.load_state_dict(early.state_dict())
    image, first, second = tokens(1, 3, 4).flatten(2).transpose(1, 2), text(1, 2), text(1, 2)
    assert torch.equal(late.fusion(image, first)[0], late.fusion(image, second)[0])
    assert not torch.allclose(early.fusion(image, first)[0], early.fusion(image, second)[0], atol=1e-4)
    assert torch.equal(late.fusion(image, first)[1], late.fusion(image.flip(2), first)[1])


@torch.no_grad()
def test_labels_attend_to_each_other_only_in_the_papers_network() -> None:
    ours = {"similarity": "posterior", "similarity_dim": 6, "affinity_refinement": True}
    for extra, independent in (({}, False), (ours, True)):
        model = build(**extra)
        image, labels = tokens(1, 4, 3, 6 * ("similarity" in extra)), text(1, 5)
        alone = model(image, labels[:, 1:2])
        assert model.config.labels_independent is independent
        assert torch.allclose(model(image, labels)[:, 1:2], alone, atol=1e-4) is independent


@torch.no_grad()
def test_image_features_are_independent_of_labels() -> None:
    model = build(similarity="posterior", similarity_dim=6, affinity_refinement=True)
    image, labels = tokens(2, 4, 3, 6), text(2, 5)
    seen = model.encode_image(image)
    assert torch.equal(model(image, labels, features=seen), model(image, labels))
    alone = [model(image, part, features=seen) for part in labels.split(2, dim=1)]
    torch.testing.assert_close(torch.cat(alone, dim=1), model(image, labels), atol=1e-4, rtol=1e-4)
    assert build().encode_image(tokens(1, 2, 2)) is None


@torch.no_grad()
def test_similarity_is_highest_where_the_posterior_has_the_label() -> None:
    model = build(similarity="posterior", similarity_dim=6)
    assert model.similarity is not None
    anchors = model.get_buffer("similarity.anchors")
    p = torch.full((1, 6, 2, 2), 0.01)
    p[0, 3, 0, 1] = 1.0
    seen = model.similarity.encode_image(torch.zeros(1, 12, 2, 2), F.normalize(p, dim=1))
    maps = model.similarity.maps(seen, anchors[None, 3:4])[0, 0]
    assert [int(channel.argmax()) for channel in maps] == [1, 1, 1]


@torch.no_grad()
def test_hypernyms_of_classes_count_towards_a_label() -> None:
    """A label equal to the hypernym of three names gives half of its weight to them, in equal parts."""
    reader: Any = build(similarity="posterior", similarity_dim=6, num_hypernyms=3).similarity
    reader.anchors.copy_(torch.eye(10)[:6])
    reader.set_hypernyms(torch.eye(10)[6:9], above([0, 1], [1], [], [1, 2], [], []))
    weights = reader.anchor_weights(torch.eye(10)[None, 7:8])[0, 0]
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]) / 6 + 1 / 12, atol=1e-4, rtol=0)
    # The fewer names a hypernym covers, the larger their weights; a label's own name has the largest.
    between = F.normalize(torch.eye(10)[6:7] + torch.eye(10)[7:8], dim=1)
    weights = reader.anchor_weights(between[None])[0, 0]
    assert weights[0] > weights[1] == weights[3] > weights[2]
    assert reader.anchor_weights(torch.eye(10)[None, 2:3])[0, 0].argmax() == 2


@given(k=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_weights_of_a_label_sum_to_one(k: int, seed: int) -> None:
    reader: Any = build(similarity="posterior", similarity_dim=6, num_hypernyms=3).similarity
    torch.manual_seed(seed)
    weights = reader.anchor_weights(text(2, k))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, k))
    assert weights.min() >= 0


@torch.no_grad()
def test_cosine_similarity_is_the_cosine() -> None:
    model = build(similarity="cosine", similarity_dim=10)
    assert model.similarity is not None
    aligned, labels = F.normalize(torch.randn(1, 10, 2, 3), dim=1), text(1, 2)
    maps = model.similarity.maps(model.similarity.encode_image(tokens(1, 2, 3), aligned), labels).unflatten(3, (2, 3))
    assert maps.shape == (1, 2, 1, 2, 3)
    expected = F.cosine_similarity(aligned[0, :, 1, 2], labels[0, 1], dim=0)
    assert maps[0, 1, 0, 1, 2].item() == pytest.approx(10 * expected.item(), abs=1e-4)


@given(b=st.integers(1, 2), p=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_affinity_rows_sum_to_one(b: int, p: int, seed: int) -> None:
    visual = torch.randn(b, 4, p, generator=torch.Generator().manual_seed(seed))
    weights = affinity(visual)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(b, p))
    assert weights.min() >= 0
    torch.testing.assert_close(affinity(7 * visual), weights)  # independent of the norm of the tokens
    order = torch.randperm(p, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(affinity(visual[..., order]), weights[:, order][:, :, order])


@torch.no_grad()
def test_affinity_spreads_a_score_to_similar_patches() -> None:
    """Of two kinds of patches, only one patch of the first kind has the label in its posterior."""
    model = build(similarity="posterior", similarity_dim=6, affinity_refinement=True)
    assert model.similarity is not None
    visual = torch.zeros(1, 12, 2, 3)
    visual[0, 0, 0], visual[0, 1, 1] = 1.0, 1.0
    p = torch.full((1, 6, 2, 3), 0.01)
    p[0, 3, 0, 1] = 1.0
    seen = model.similarity.encode_image(visual, F.normalize(p, dim=1))
    assert seen.affinity is not None
    spread = model.similarity.maps(seen, model.get_buffer("similarity.anchors")[None, 3:4])[0, 0] @ seen.affinity[0].T
    for channel in spread.unflatten(1, (2, 3)):
        assert channel[0].min() > channel[1].max()
        torch.testing.assert_close(channel[0], channel[0, :1].expand(3))


@torch.no_grad()
def test_the_residual_head_starts_at_zero() -> None:
    model = build(similarity="posterior", similarity_dim=6, residual_head=True, logit_bias=True)
    image, labels = tokens(2, 4, 3, 6), text(2, 3)
    before = model(image, labels)
    bias = dict(model.named_parameters())["similarity.residual_head.2.bias"]
    assert bias.item() == 0
    bias.fill_(1.5)
    torch.testing.assert_close(model(image, labels), before + 1.5)


@torch.no_grad()
def test_prompt_dropout_applies_to_training_only_unless_it_is_1() -> None:
    for rate, training, shares in ((0.5, False, {0.0}), (1.0, False, {1.0}), (1.0, True, {1.0}), (0.0, True, {0.0})):
        model = build(similarity="posterior", similarity_dim=6, prompt_dropout=rate).train(training)
        assert {model._dropped_prompts(1, 1, torch.device("cpu")).float().item() for _ in range(9)} == shares
    half = build(similarity="posterior", similarity_dim=6, prompt_dropout=0.5).train()
    assert half._dropped_prompts(50, 50, torch.device("cpu")).float().mean() == pytest.approx(0.5, abs=0.05)


def test_gradients_reach_every_weight() -> None:
    options = {"affinity_refinement": True, "residual_head": True, "logit_bias": True, "decoder_norm": "layer"}
    model = build(similarity="posterior", similarity_dim=6, num_hypernyms=3, **options).train()
    model(tokens(2, 3, 4, 6), text(2, 3)).square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "multiple of its 3 heads"),
        ({"num_hypernyms": 9}, "num_hypernyms needs a classifier's posterior"),
        ({"affinity_refinement": True}, "affinity_refinement reads similarity maps"),
        ({"residual_head": True}, "residual_head reads similarity maps"),
        ({"method": "middle"}, "one of fusioner, late"),
        ({"decoder_norm": "batch"}, "--decoder-norm is one of instance, layer"),
        ({"similarity": "posterior"}, "aligned image encoder"),
        ({"similarity_dim": 6}, "aligned image encoder"),
        ({"similarity": "cosine", "similarity_dim": 6}, "from one model"),
        ({"decoder_widths": ()}, "at least one"),
    ],
)
def test_an_impossible_shape_is_one_sentence(changes: dict, message: str) -> None:
    with pytest.raises(FusionerError, match=message):
        config(**changes)


@torch.no_grad()
def test_one_encoder_gives_both_visual_tokens_and_similarity() -> None:
    model = build(image_dim=0, similarity="cosine", similarity_dim=10, affinity_refinement=True)
    assert model.config.visual_dim == 10
    image = tokens(1, 3, 4)[:, :10]
    visual, aligned = model.split_channels(image)
    assert torch.equal(visual, image)
    assert torch.equal(aligned, image)
    assert model(image, text(1, 3)).shape[:2] == (1, 3)
