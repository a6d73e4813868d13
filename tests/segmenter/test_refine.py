"""Test the guided filter on pictures with known edges."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fusioner.postprocess as postprocess
from fusioner.options import InferenceOptions
from fusioner.segmenter import Segmenter


class GuidedFilter(postprocess.GuidedFilter):
    """The guided filter with tensors as input and output."""

    def __init__(self, guide: Tensor, *options: Any, **named_options: Any) -> None:
        super().__init__(guide.numpy(), *options, **named_options)

    def __call__(self, logits: Any) -> Any:
        return torch.from_numpy(super().__call__(logits.numpy()))


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(postprocess.upsample(logits.numpy(), size))


def disc(side: int, radius: float) -> Tensor:
    y, x = np.mgrid[:side, :side] + 0.5
    return torch.from_numpy(((y - side / 2) ** 2 + (x - side / 2) ** 2 < radius**2).astype(np.float32))


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_blurred_mask_follows_the_edges_of_the_photograph():
    truth = disc(84, 25)
    guide = torch.stack([0.2 + 0.6 * truth, 0.7 - 0.3 * truth, 0.4 + 0 * truth])
    coarse = torch.nn.functional.avg_pool2d(truth[None] * 8 - 4, 12)  # 7 x 7 cells
    before, after = upsample(coarse, (84, 84))[0] > 0, GuidedFilter(guide)(coarse)[0] > 0
    assert iou(after, truth.bool()) > 0.97 > 0.93 > iou(before, truth.bool())


def test_a_photograph_without_edges_changes_next_to_nothing():
    coarse = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = upsample(coarse, (60, 60))
    found = GuidedFilter(torch.full((3, 60, 60), 0.5), radius=1)(coarse)
    assert (found - plain).abs().mean() < 0.05 * plain.abs().mean()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-5, 5), st.floats(0.1, 3))
def test_the_filter_is_linear_and_preserves_constants(seed: int, level: float, factor: float):
    g = torch.Generator().manual_seed(seed)
    edges = GuidedFilter(torch.rand(3, 24, 24, generator=g), radius=2)
    logits = torch.randn(2, 8, 8, generator=g)
    torch.testing.assert_close(edges(factor * logits + level), factor * edges(logits) + level, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(edges(logits)[1:], edges(logits[1:]))


def test_finer_logits_are_averaged_not_sampled():
    flat = GuidedFilter(torch.full((3, 8, 8), 0.5), radius=1)
    checker = torch.from_numpy((np.indices((24, 24)).sum(0) % 2).astype(np.float32) * 2 - 1)[None]
    assert flat(checker).abs().max() < 0.2, "cells are sampled instead of averaged"
    coarse = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flat(coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)), flat(coarse))


def test_the_filter_equals_the_papers_formula_at_one_pixel():
    g = torch.Generator().manual_seed(3)
    guide, p, r, eps = torch.rand(3, 12, 12, generator=g).double(), torch.randn(12, 12, generator=g).double(), 1, 0.01
    slopes, levels = torch.zeros(12, 12, 3).double(), torch.zeros(12, 12).double()
    for y in range(12):
        for x in range(12):
            window = np.s_[max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            colours, values = guide[:, window[0], window[1]].reshape(3, -1), p[window].reshape(-1)
            mean = colours.mean(1)
            sigma = colours @ colours.T / len(values) - mean[:, None] * mean
            slopes[y, x] = torch.linalg.solve(
                sigma + eps * torch.eye(3).double(), (colours * values).mean(1) - mean * values.mean()
            )
            levels[y, x] = values.mean() - slopes[y, x] @ mean
    expected = slopes[4:7, 6:9].mean((0, 1)) @ guide[:, 5, 7] + levels[4:7, 6:9].mean()
    found = GuidedFilter(guide, r, eps)(p[None])[0, 5, 7]
    torch.testing.assert_close(found, expected)


def test_guided_filter_true_refines_masks(tiny_segmenter: Segmenter):
    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    plain = tiny_segmenter.low_res_logits(tiny_segmenter.encode(rgb), ["cat", "dog"])
    encoded = tiny_segmenter.encode(rgb, guided_filter=True)
    found = tiny_segmenter.low_res_logits(encoded, ["cat", "dog"])
    assert encoded.guide is not None
    torch.testing.assert_close(found, encoded.guide(plain))
    assert tiny_segmenter.encode(rgb, mode="slide").guide is None
    found = tiny_segmenter(rgb, ["cat"], guided_filter=True)
    assert found.label_map.shape == (40, 60)
    assert found.options == InferenceOptions("whole", (1.0,), True, threshold=0.5)
    slid = tiny_segmenter(rgb, ["cat"], mode="slide").options
    window = tiny_segmenter.card.resolution
    assert slid == InferenceOptions("slide", guided_filter=False, threshold=0.5, window=window)


@pytest.mark.parametrize("refine", [True, False])
def test_the_card_sets_the_default_of_guided_filter(tiny_segmenter: Segmenter, refine: bool):
    parts = tiny_segmenter.model, tiny_segmenter.image_encoder, tiny_segmenter.text_encoder
    made = Segmenter.from_parts(*parts, replace(tiny_segmenter.card, guided_filter=refine))
    assert made.resolve().guided_filter is refine
    assert made.resolve(guided_filter=not refine).guided_filter is not refine
    made.options = InferenceOptions(guided_filter=not refine)
    assert made.resolve(tta_scales=(1.0, 1.5)).guided_filter is not refine


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_the_smallest_pictures_are_refined(tiny_segmenter: Segmenter, size: tuple[int, int]):
    rgb = np.zeros((*size, 3), np.uint8)
    assert tiny_segmenter(rgb, ["cat"], guided_filter=True).label_map.shape == size
