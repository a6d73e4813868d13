"""Compare the vectorised bootstrap with an explicit loop."""

from dataclasses import replace

import numpy as np
import pytest

from fusioner.evaluation.bootstrap import Estimate, summarize
from fusioner.evaluation.results import Counts, GroupCounts, PromptCounts, PromptPlan


def evidence(images: int = 6, seed: int = 0) -> Counts:
    """Return random but consistent counts of two classes, one or two pairs per image."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(images), 2)
    class_id = np.tile([1, 2], images)
    both, extra = rng.integers(1, 50, len(image)), rng.integers(0, 50, len(image))
    values = np.stack([500 - both - extra, 500 - both, both, both + extra] * 2, axis=1).astype(float)
    right = rng.integers(1, 30, (images, 3))
    counts = np.stack([right, right + rng.integers(0, 9, right.shape), right + rng.integers(0, 9, right.shape)], axis=1)
    group = GroupCounts((1, 2), counts, np.zeros((3, 3), int))
    rows = PromptCounts(image, class_id, values)
    absent = np.stack([0 * both, extra / 500, extra > 0], axis=1).astype(float)
    present = np.stack([0 * both + 1, both / 500, both > 25], axis=1).astype(float)
    presence = PromptCounts(np.tile(image, 2), np.tile(class_id, 2), np.concatenate([absent, present]))
    plan = PromptPlan("official", tuple(f"{seed}-{i}" for i in range(images)), groups={"unseen": (1, 2)})
    return Counts(plan, rows, presence, {"unseen": group}, [], [])


def miou_of(e: Counts, drawn: np.ndarray) -> float:
    """Return the mIoU of an explicit list of images, with repetitions."""
    ious = []
    for class_id in (1, 2):
        rows = np.concatenate([np.flatnonzero((e.pairs.image == i) & (e.pairs.class_id == class_id)) for i in drawn])
        ious.append(e.pairs.values[rows, 2].sum() / e.pairs.values[rows, 3].sum())
    return 100 * float(np.mean(ious))


def test_measure_and_interval_equal_those_of_a_naive_bootstrap():
    e = evidence()
    figure = summarize([e], n_resamples=2000, seed=1).measures["miou"]
    assert figure.value == pytest.approx(miou_of(e, np.arange(6)))
    rng = np.random.default_rng(5)
    samples = [miou_of(e, rng.integers(0, 6, 6)) for _ in range(2000)]
    low, high = np.percentile(samples, [2.5, 97.5])
    assert figure.low == pytest.approx(low, abs=1.0)
    assert figure.high == pytest.approx(high, abs=1.0)
    assert figure.low < figure.value < figure.high


def test_equal_images_have_an_interval_of_zero_width():
    e = evidence()
    e.pairs.values[:] = e.pairs.values[:2].repeat(6, axis=0).reshape(2, 6, 8).transpose(1, 0, 2).reshape(12, 8)
    figure = summarize([e], n_resamples=100).measures["miou"]
    assert figure.low == pytest.approx(figure.value) == pytest.approx(figure.high)


def test_more_images_narrow_the_interval_and_a_seed_repeats_it():
    widths = [
        (f := summarize([evidence(n)], n_resamples=300).measures["argmax_miou"]).high - f.low for n in (5, 20, 80)
    ]
    assert widths == sorted(widths, reverse=True)
    assert summarize([evidence()], n_resamples=99, seed=3) == summarize([evidence()], n_resamples=99, seed=3)
    assert summarize([evidence()], n_resamples=99, seed=3) != summarize([evidence()], n_resamples=99, seed=4)


def test_argmax_and_absent_by_hand():
    e = evidence()
    found = summarize([e], n_resamples=10).measures
    inside, truth, predicted = e.groups["unseen"].counts.sum(axis=0)
    iou = inside / (truth + predicted - inside)
    assert found["argmax_miou"].value == pytest.approx(100 * iou[1:].mean())
    assert found["background_iou"].value == pytest.approx(100 * iou[0])
    assert found["false_positive_area"].value == pytest.approx(100 * e.presence.values[:12, 1].mean())
    truth, predicted = e.presence.values[:, 0], e.presence.values[:, 2]
    assert found["specificity"].value == pytest.approx(100 - 100 * predicted[:12].mean())
    assert found["presence_mcc"].value == pytest.approx(100 * np.corrcoef(truth, predicted)[0, 1])
    assert found["prompt_ablated_miou"] == found["miou"]
    assert "harmonic" not in found
    assert summarize([e], n_resamples=10).absent_prompts == 12


@pytest.mark.parametrize("include_background", [False, True])
def test_data_sets_without_folds_by_hand(include_background: bool):
    e, confusion = evidence(), np.random.default_rng(1).integers(1, 50, (6, 3, 3))  # (image, truth, predicted)
    counts = np.stack([confusion.diagonal(axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)], axis=1)
    group, plan = replace(e.groups["unseen"], counts=counts), replace(e.plan, include_background=include_background)
    summary = summarize([replace(e, plan=plan, pairs=e.pairs.take(np.zeros(12, bool)), groups={"all": group})])
    total = confusion.sum(axis=0)
    iou = [total[i, i] / (total[i].sum() + total[:, i].sum() - total[i, i]) for i in range(3)]
    assert summary.measures["miou"].value == pytest.approx(100 * np.mean(iou if include_background else iou[1:]))
    assert summary.measures["background_iou"].value == pytest.approx(100 * iou[0])
    assert {i: figure.value for i, figure in summary.per_class.items()} == pytest.approx(
        {1: 100 * iou[1], 2: 100 * iou[2]}
    )
    foreground = total[1:, 1:].sum() / (total.sum() - total[0, 0])
    assert summary.measures["fb_iou"].value == pytest.approx(100 * (iou[0] + foreground) / 2)


def test_a_class_without_a_pixel_of_truth_is_left_out_of_the_mean():
    e = evidence()
    e.groups["unseen"].counts[:, 0, 2] = e.groups["unseen"].counts[:, 1, 2] = 0
    inside, truth, predicted = e.groups["unseen"].counts[..., 1].sum(axis=0)
    summary = summarize([e], n_resamples=20)
    assert summary.measures["argmax_miou"].value == pytest.approx(100 * inside / (truth + predicted - inside))
    assert np.isnan(summary.argmax_per_class[2].value)


def test_the_harmonic_mean_of_seen_and_unseen():
    e = evidence()
    e.groups["seen"] = evidence(seed=1).groups["unseen"]
    found = {name: figure.value for name, figure in summarize([e], n_resamples=10).measures.items()}
    seen, unseen = found["seen_argmax_miou"], found["argmax_miou"]
    inside, truth, predicted = e.groups["seen"].counts.sum(axis=0)
    assert seen == pytest.approx(100 * (inside / (truth + predicted - inside))[1:].mean())
    assert found["harmonic"] == pytest.approx(2 * seen * unseen / (seen + unseen))


def test_folds_are_averaged_over_one_draw_of_the_union_of_images():
    first, second = evidence(seed=1), evidence(seed=2)
    mean = summarize([first, second], n_resamples=50)
    separate = [summarize([e], n_resamples=50).measures["miou"].value for e in (first, second)]
    assert mean.measures["miou"].value == pytest.approx(np.mean(separate))
    assert mean.images == 12
    assert mean.pairs == 24
    repeated = summarize([first, first], n_resamples=50)
    assert repeated.measures["miou"] == summarize([first], n_resamples=50).measures["miou"]


def test_a_measure_without_images_is_nan():
    assert np.isnan(Estimate.of(np.array([1.0, np.nan])).low)
