"""Evaluate a toy Segmenter, encoding on the fly, from a cache and in windows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.data.base import SegmentationData
from fusioner.errors import FusionerError
from fusioner.evaluation.evaluator import evaluate, to_metrics
from fusioner.evaluation.predictor import FunctionPredictor, SegmenterPredictor
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.options import Mode
from fusioner.postprocess import upsample
from fusioner.segmenter import Segmenter

FAST = EvaluationOptions(folds=(0,), n_resamples=10)


def test_each_image_is_encoded_once_or_taken_from_the_store(
    tiny_segmenter: Segmenter, voc_data: SegmentationData, tmp_path: Path
):
    encoder = tiny_segmenter.image_encoder
    live = to_metrics(evaluate(SegmenterPredictor(tiny_segmenter), voc_data, FAST))
    assert encoder.calls == live["images"]  # pyright: ignore[reportAttributeAccessIssue]
    found = []
    for _ in range(2):
        predictor = SegmenterPredictor(tiny_segmenter, cache=tmp_path)
        found.append(to_metrics(evaluate(predictor, voc_data, FAST)))
        assert encoder.calls == 2 * live["images"]  # pyright: ignore[reportAttributeAccessIssue]
    assert found[0] == found[1]
    assert found[0]["miou"] == pytest.approx(live["miou"], abs=1.0), "half-precision tokens change the result"
    assert found[0]["pairs"] == live["pairs"]


def test_native_resolution_slides_windows_and_uses_no_store(
    tiny_segmenter: Segmenter, voc_data: SegmentationData, tmp_path: Path
):
    item = voc_data.items[0]
    rgb, _ = voc_data.read(item)
    predictor = SegmenterPredictor(tiny_segmenter, "slide", tmp_path / "cache")
    encoded = predictor.encode(rgb, item.image)
    assert encoded[0].encoded.grid is not None
    assert tiny_segmenter.overlap_blending, "the evaluation changed the Segmenter's blending"
    found = predictor.logits(encoded, ["cat", "dog"])
    torch.testing.assert_close(found.numpy(), tiny_segmenter.logits(encoded[0].encoded, ["cat", "dog"]))
    content = to_metrics(evaluate(predictor, voc_data, replace(FAST, limit=1)))
    assert content["images"] == 1
    assert not (tmp_path / "cache").exists()


def test_the_evaluation_decides_as_the_segmenter_does(tiny_segmenter: Segmenter, voc_data: SegmentationData):
    outcome = evaluate(SegmenterPredictor(tiny_segmenter), voc_data, replace(FAST, limit=3))
    plan = outcome.folds[0].counts.plan
    group = outcome.folds[0].counts.groups["unseen"]
    names = [voc_data.prompts[i] for i in plan.groups["unseen"]]
    for image, counts in zip(plan.images, group.counts, strict=True):
        rgb, mask = voc_data.read(voc_data.by_id[image])
        label_map = tiny_segmenter(rgb, names).label_map
        np.testing.assert_array_equal(np.bincount(label_map[mask != 255], minlength=6), counts[2])


def test_independent_labels_have_the_same_measures_in_portions(make_tiny_segmenter, voc_data: SegmentationData):
    predictor = SegmenterPredictor(make_tiny_segmenter(similarity_dim=6, similarity="cosine"))
    assert predictor.independent
    few = replace(FAST, limit=2)
    together = to_metrics(evaluate(predictor, voc_data, few))
    predictor.independent = False
    assert to_metrics(evaluate(predictor, voc_data, few)) == together


def test_predictions_of_any_resolution_are_scored_at_the_masks(voc_data: SegmentationData):
    half = FunctionPredictor(lambda rgb, labels: np.stack([rgb[::2, ::2, 0] > 9 for _ in labels]))
    content = to_metrics(evaluate(half, voc_data, FAST))
    assert 50 < content["fb_iou"] < 100


def test_the_ground_truth_may_be_smaller_than_the_image(voc_data: SegmentationData, tmp_path: Path):
    """A class that disappears when the mask is resized must not count as absent."""
    item = voc_data.items[0]
    mask = np.zeros_like(np.asarray(Image.open(item.mask)))
    mask[1, 1] = 1
    Image.fromarray(mask).save(tmp_path / "one.png")
    data = replace(voc_data, items=[replace(item, mask=tmp_path / "one.png")])
    answer = FunctionPredictor(lambda rgb, labels: np.zeros((len(labels), *rgb.shape[:2])))
    evidence = evaluate(answer, data, replace(FAST, eval_size=4, images="all")).folds[0].counts
    absent = evidence.presence.take(evidence.presence.values[:, 0] == 0)
    assert set(absent.class_id) == {2, 3, 4, 5}


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_logits_of_scales_are_averaged(tiny_segmenter: Segmenter, voc_data: SegmentationData, mode: Mode):
    rgb, _ = voc_data.read(voc_data.items[0])
    names, size = ["cat", "dog"], (60, 80)

    def ask(**options: Any) -> torch.Tensor:
        predictor = SegmenterPredictor(tiny_segmenter, mode, **options)
        return torch.from_numpy(upsample(predictor.logits(predictor.encode(rgb, None), names).numpy(), size))

    separate = [ask(scales=[scale]) for scale in (1.0, 1.5)]
    assert not torch.allclose(separate[0], separate[1], atol=1e-3)
    both, expected = ask(scales=[1.0, 1.5]).sigmoid(), ((separate[0] + separate[1]) / 2).sigmoid()
    assert (both - expected).abs().mean() < 0.01  # `expected` is resized once, `both` twice


def test_with_a_flip_a_mirrored_image_has_mirrored_logits(tiny_segmenter: Segmenter, voc_data: SegmentationData):
    rgb, _ = voc_data.read(voc_data.items[0])
    mirrored = np.ascontiguousarray(rgb[:, ::-1])
    both, alone = SegmenterPredictor(tiny_segmenter, flip=True), SegmenterPredictor(tiny_segmenter)
    found, other = (both.logits(both.encode(image, None), ["cat"]) for image in (rgb, mirrored))
    torch.testing.assert_close(found.flip(-1), other)
    found, other = (alone.logits(alone.encode(image, None), ["cat"]) for image in (rgb, mirrored))
    assert not torch.allclose(found.flip(-1), other, atol=1e-3)


@pytest.mark.parametrize("scales", [[], [0.0], [-1.0], [float("nan")], [99.0]])
def test_impossible_scales_are_refused(tiny_segmenter: Segmenter, scales: list[float]):
    with pytest.raises(FusionerError, match="scales must be above 0"):
        SegmenterPredictor(tiny_segmenter, scales=scales)
