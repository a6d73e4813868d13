"""Whole evaluations with predictors of known scores."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.data.base import Item, SegmentationData
from fusioner.data.classes import COCO_CLASSES, PASCAL_CLASSES, PASCAL_TO_COCO
from fusioner.data.folds import val_pairs
from fusioner.data.registry import open_dataset
from fusioner.errors import FusionerError
from fusioner.evaluation.evaluator import EvaluationResult, evaluate, to_metrics
from fusioner.evaluation.predictor import FunctionPredictor
from fusioner.evaluation.protocols import EvaluationOptions, fold_plan, limit_images, plan_without_folds, sample_pairs
from fusioner.evaluation.results import IGNORED

WORDS = {"dining table": "diningtable", "potted plant": "pottedplant", "tv monitor": "tvmonitor"}
FAST = EvaluationOptions(folds=(0,), n_resamples=50)


def colours_seen(rgb: np.ndarray) -> np.ndarray:
    """Decode class ids from the colours of the test tree."""
    return rgb[..., 0].astype(int) // 10


def oracle(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Predict the classes of the labels from the colours of the pixels."""
    names = [WORDS.get(label, label) for label in labels]
    known = [PASCAL_CLASSES.index(name) if name in PASCAL_CLASSES else -1 for name in names]
    return np.stack([colours_seen(rgb) == i for i in known]).astype(np.float32)


def empty(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    return np.zeros((len(labels), *rgb.shape[:2]), np.float32)


def saliency(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Predict every foreground pixel for every label."""
    return np.stack([colours_seen(rgb) > 0 for _ in labels]).astype(np.float32)


def figures(outcome: EvaluationResult) -> dict[str, float]:
    return {name: figure.value for name, figure in outcome.summary.measures.items()}


def test_an_oracle_is_perfect_in_every_measure(voc_data: SegmentationData):
    found = figures(evaluate(FunctionPredictor(oracle), voc_data, FAST))
    assert found == {
        "miou": 100, "fb_iou": 100, "argmax_miou": 100, "seen_argmax_miou": 100, "harmonic": 100,
        "background_iou": 100, "false_positive_area": 0, "specificity": 100, "presence_mcc": 100,
        "prompt_ablated_miou": 0,
    }  # fmt: skip


def test_a_predictor_that_finds_nothing(voc_data: SegmentationData):
    outcome = evaluate(FunctionPredictor(empty), voc_data, FAST)
    found = figures(outcome)
    assert found["miou"] == found["argmax_miou"] == found["harmonic"] == found["false_positive_area"] == 0
    assert found["specificity"] == 100
    assert found["presence_mcc"] == 0
    assert 0 < found["fb_iou"] < 50
    assert set(outcome.summary.per_class) <= {1, 2, 3, 4, 5}


def test_a_saliency_predictor_scores_low_in_argmax_miou(voc_data: SegmentationData):
    found = figures(evaluate(FunctionPredictor(saliency), voc_data, FAST))
    assert found["prompt_ablated_miou"] == found["miou"] > 30
    assert found["specificity"] == found["presence_mcc"] == 0
    assert found["false_positive_area"] > 10
    assert found["argmax_miou"] < found["miou"] / 2


def test_single_prompts_are_predicted_alone_and_groups_together(voc_data: SegmentationData):
    requested: list[tuple[str, ...]] = []

    def record(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        requested.append(tuple(labels))
        return oracle(rgb, labels)

    plan, _ = fold_plan(voc_data, 0, FAST)
    joint = evaluate(FunctionPredictor(record), voc_data, FAST)
    assert {len(labels) for labels in requested} == {1, 5, 15}
    assert sum(len(labels) == 5 for labels in requested) == len(plan.images)
    requested.clear()
    independent = evaluate(FunctionPredictor(record, independent=True), voc_data, FAST)
    assert figures(independent) == figures(joint)
    assert sum(len(labels) for labels in requested) == 21 * len(plan.images), "each label is predicted once per image"


def test_images_are_read_and_encoded_once(voc_data: SegmentationData):
    class Counting(FunctionPredictor):
        seen = 0

        def encode(self, rgb: np.ndarray, file: Path | None) -> np.ndarray:
            self.seen += 1
            return rgb

    predictor = Counting(oracle)
    evaluate(predictor, voc_data, replace(FAST, protocol="hsnet"))
    assert predictor.seen == len(fold_plan(voc_data, 0, FAST)[0].images)


def test_protocols_differ_in_their_prompts(voc_data: SegmentationData):
    official, missing = fold_plan(voc_data, 0, FAST)
    assert list(official.pairs) == sorted(set(official.pairs))
    assert missing == (346, len(official.pairs))
    hsnet, _ = fold_plan(voc_data, 0, replace(FAST, protocol="hsnet", seed=3))
    assert len(hsnet.pairs) == 1000
    assert set(hsnet.pairs) == set(official.pairs)
    assert hsnet.pairs == fold_plan(voc_data, 0, replace(FAST, protocol="hsnet", seed=3))[0].pairs
    assert hsnet.pairs != fold_plan(voc_data, 0, replace(FAST, protocol="hsnet", seed=4))[0].pairs
    everything, _ = fold_plan(voc_data, 0, replace(FAST, images="all"))
    assert len(everything.images) == len(voc_data.items) > len(official.images)
    assert everything.pairs == official.pairs
    with pytest.raises((FusionerError, TypeError)):  # optional run-time type checks raise first
        fold_plan(voc_data, 0, replace(FAST, protocol="mine"))  # pyright: ignore[reportArgumentType]


def test_coco_is_evaluated_on_its_first_thousand_pairs():
    listed = val_pairs("coco", 1)
    items = [Item(image, Path(image), Path(image)) for image in sorted({image for image, _ in listed})]
    coco = SegmentationData("coco", COCO_CLASSES, items)  # files are not read for a plan
    official, coverage = fold_plan(coco, 1, FAST)
    assert coverage == (len(listed), len(listed))
    assert list(official.pairs) == listed[:1000]
    assert set(official.images) == {image for image, _ in listed[:1000]}
    assert list(fold_plan(coco, 1, replace(FAST, protocol="full"))[0].pairs) == listed
    drawn = fold_plan(coco, 1, replace(FAST, protocol="hsnet"))[0].pairs
    assert len(drawn) == 1000
    assert len({class_id for _, class_id in drawn}) == 20


def test_hsnet_draws_classes_evenly_whatever_their_number_of_images():
    pairs = [("a", 1), *((f"b{i}", 2) for i in range(99))]
    drawn = sample_pairs(pairs, 1000, seed=0)
    assert sum(c == 1 for _, c in drawn) == pytest.approx(500, abs=60)


def test_hsnet_rows_count_as_often_as_they_were_drawn(voc_data: SegmentationData):
    outcome = evaluate(FunctionPredictor(saliency), voc_data, replace(FAST, protocol="hsnet"))
    assert outcome.summary.pairs == 1000
    rows = outcome.folds[0].counts.pairs
    once = {(i, c): tuple(v) for i, c, v in zip(rows.image, rows.class_id, rows.values, strict=True)}
    assert len(once) < 1000
    by_hand = []
    for class_id in np.unique(rows.class_id):
        values = rows.values[rows.class_id == class_id].sum(axis=0)
        by_hand.append(values[2] / values[3])
    assert outcome.summary.measures["miou"].value == pytest.approx(100 * np.mean(by_hand))


def test_measures_of_folds_equal_those_of_the_metric(voc_data: SegmentationData):
    import torch

    from fusioner.evaluation.evaluator import binary_counts

    plan, _ = fold_plan(voc_data, 0, FAST)
    counts = torch.zeros(21, 2, 2, dtype=torch.int64)
    for image, class_id in plan.pairs:
        rgb, mask = (torch.from_numpy(part) for part in voc_data.read(voc_data.by_id[image]))
        counts[class_id] += binary_counts(rgb[..., 0] > 9, mask == class_id, mask == 255)
    prompted = counts[sorted({class_id for _, class_id in plan.pairs})].double()
    expected = (prompted[:, 1, 0] / prompted[:, 1, 1]).mean()
    fb_expected = (prompted.sum(dim=0)[:, 0] / prompted.sum(dim=0)[:, 1]).mean()
    found = figures(evaluate(FunctionPredictor(saliency), voc_data, FAST))
    assert found["miou"] == pytest.approx(100 * float(expected))
    assert found["fb_iou"] == pytest.approx(100 * float(fb_expected))


def test_absent_prompts_are_classes_not_in_the_image(voc_data: SegmentationData):
    evidence = evaluate(FunctionPredictor(oracle), voc_data, FAST).folds[0].counts
    absent = evidence.presence.take(evidence.presence.values[:, 0] == 0)
    assert len(absent.image)
    for image, class_id in zip(absent.image, absent.class_id, strict=True):
        mask = voc_data.read_mask(voc_data.by_id[evidence.plan.images[image]])
        assert class_id in (1, 2, 3, 4, 5)
        assert class_id not in mask


def test_all_folds_are_averaged_and_reported_apart(voc_data: SegmentationData):
    outcome = evaluate(FunctionPredictor(saliency), voc_data, replace(FAST, folds=(0, 2)))
    content = to_metrics(outcome)
    assert content["miou"] == pytest.approx(np.mean([content["folds"][f]["miou"] for f in "02"]), abs=1e-3)
    assert set(content["per_class"]) == set(content["folds"]["0"]["per_class"]) | set(
        content["folds"]["2"]["per_class"]
    )
    low, high = content["intervals"]["miou"]
    assert low <= content["miou"] <= high
    json.dumps(content, allow_nan=False)


def test_a_fold_without_images_is_one_sentence(voc_data: SegmentationData):
    listed = {image for image, _ in val_pairs("pascal", 3)}
    others = replace(voc_data, items=[item for item in voc_data.items if item.id not in listed])
    with pytest.raises(FusionerError, match="none of the 346 val pairs of pascal fold 3"):
        evaluate(FunctionPredictor(oracle), others, replace(FAST, folds=(3,)))


def test_a_limit_spreads_over_the_list(voc_data: SegmentationData):
    plan, _ = fold_plan(voc_data, 0, FAST)
    short = limit_images(plan, 3)
    assert short.images == (plan.images[0], plan.images[round((len(plan.images) - 1) / 2)], plan.images[-1])
    assert {image for image, _ in short.pairs} == set(short.images)
    assert limit_images(plan, 10_000) == plan
    with pytest.raises(FusionerError, match="at least one"):
        limit_images(plan, 0)


def test_masks_are_scored_at_the_requested_side(voc_data: SegmentationData):
    outcome = evaluate(FunctionPredictor(oracle), voc_data, replace(FAST, eval_size=16))
    rows = outcome.folds[0].counts.pairs.values
    assert (rows[:, 0] + rows[:, 3] <= 16 * 16).all()
    assert outcome.summary.measures["miou"].value > 60
    assert to_metrics(outcome)["settings"]["eval_size"] == 16


def test_examples_are_the_best_and_the_worst(voc_data: SegmentationData):
    evidence = evaluate(FunctionPredictor(saliency), voc_data, FAST).folds[0].counts
    best, worst = [e.score for e in evidence.best], [e.score for e in evidence.worst]
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert best[0] > worst[0]
    assert len(best) == 12
    assert all(len(example.labels) == 1 for example in (*evidence.best, *evidence.worst))  # pairs are prompted alone
    example = evidence.best[0]
    assert example.prediction.shape == example.truth.shape
    assert set(np.unique(example.truth)) == {0, 1, IGNORED}
    assert (example.truth[:2] == IGNORED).all()


def own_folder(root: Path, first: str) -> SegmentationData:
    """Write three pictures of two classes (ids 1 and 12, named as in PASCAL), and an absent third class."""
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i, present in enumerate(([1], [12], [1, 12])):
        mask = np.zeros((20, 30), np.uint8)
        for k, class_id in enumerate(present):
            mask[3:15, 3 + 12 * k : 12 + 12 * k] = class_id
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        Image.fromarray(np.repeat(mask[..., None] * 10, 3, axis=-1)).save(root / "images" / f"{i}.png")
    (root / "classes.json").write_text(json.dumps({first: 0, "aeroplane": 1, "dog": 12, "cow": 10}))
    return open_dataset("folder", root)


def test_a_folder_is_scored_by_argmax_over_all_its_classes(tmp_path: Path):
    data = own_folder(tmp_path, "background")
    result = evaluate(FunctionPredictor(oracle), data, FAST)
    content, examples = to_metrics(result), result.folds[None].counts.best
    assert [(example.score, example.image, example.labels) for example in examples] == [
        (1.0, str(i), data.class_ids) for i in range(3)
    ]
    assert content["protocol"] == "argmax"
    assert content["miou"] == content["fb_iou"] == content["specificity"] == content["background_iou"] == 100
    assert content["per_class"] == {"aeroplane": 100, "dog": 100}
    assert content["images"] == 3
    blank = to_metrics(evaluate(FunctionPredictor(empty), data, FAST))
    assert blank["miou"] == 0
    assert blank["per_class"] == {"aeroplane": 0, "dog": 0}
    assert 0 < blank["background_iou"] < 100
    assert blank["fb_iou"] == pytest.approx(blank["background_iou"] / 2, abs=1e-3)


def test_unlabeled_pixels_are_neither_background_nor_scored(tmp_path: Path):
    data = own_folder(tmp_path, "null")
    assert not plan_without_folds(data).background

    def rough(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        """Predict correctly on labelled pixels and arbitrarily elsewhere, below the threshold."""
        return 0.4 * np.where(colours_seen(rgb) > 0, oracle(rgb, labels), 1.0)

    content = to_metrics(evaluate(FunctionPredictor(rough), data, FAST))
    assert content["miou"] == 100
    assert "fb_iou" not in content
    assert "false_positive_area" not in content


def test_fss1000_is_prompted_class_by_class(shared: Path):
    data = open_dataset("fss1000", shared / "data" / "fss_like")
    seen: list[Sequence[str]] = []

    def half(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        seen.append(labels)
        return np.ones((len(labels), *rgb.shape[:2]), np.float32)

    content = to_metrics(evaluate(FunctionPredictor(half), data, replace(FAST, limit=20)))
    assert content["images"] == content["pairs"] == 20
    assert content["miou"] == pytest.approx(content["prompt_ablated_miou"])
    assert all(len(labels) == 1 for labels in seen)


def test_a_coco_model_is_evaluated_on_unseen_pascal_classes(colour_voc: Path):
    data = open_dataset("coco-to-pascal", colour_voc, "val")
    requested: set[str] = set()

    def record(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        requested.update(labels)
        ours = [next((k for k, v in PASCAL_TO_COCO.items() if v == label), label) for label in labels]
        return oracle(rgb, ours)

    content = to_metrics(evaluate(FunctionPredictor(record), data, FAST))
    assert (content["dataset"], content["protocol"]) == ("coco-to-pascal", "official")
    assert content["miou"] == content["argmax_miou"] == 100
    assert set(content["per_class"]) <= {"aeroplane", "boat", "chair", "diningtable", "dog", "person"}
    assert {"airplane", "dining table", "tv", "couch"} <= requested
    assert "aeroplane" not in requested


def outdoors(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Scale the oracle below the threshold and predict sky wherever there is no class."""
    return 0.4 * np.stack([colours_seen(rgb) == 0 if x == "sky" else oracle(rgb, [x])[0] for x in labels])


def test_background_is_scored_as_each_benchmark_defines_it(colour_voc: Path):
    def miou(name: str, predictor: Callable[[np.ndarray, Sequence[str]], np.ndarray]) -> float:
        return figures(evaluate(FunctionPredictor(predictor), open_dataset(name, colour_voc, "val"), FAST))["miou"]

    assert miou("pas20", oracle) == miou("voc21", oracle) == miou("pas20b", outdoors) == 100
    assert miou("pas20", outdoors) == 100, "a threshold or background is applied"
    assert miou("pas20b", oracle) < 100, "background pixels are not assigned to the first name"
    present = len(
        to_metrics(evaluate(FunctionPredictor(oracle), open_dataset("voc21", colour_voc, "val"), FAST))["per_class"]
    )
    share = figures(evaluate(FunctionPredictor(empty), open_dataset("voc21", colour_voc, "val"), FAST))[
        "background_iou"
    ]
    assert miou("voc21", empty) == pytest.approx(share / (present + 1)), "background is not averaged"


@pytest.fixture
def mosaics(tmp_path: Path) -> SegmentationData:
    """Write FSS-like classes named as in PASCAL, in the colours that the predictors above decode."""
    for name in PASCAL_CLASSES[1:9]:
        (tmp_path / name).mkdir()
        mask = np.zeros((20, 20), np.uint8)
        mask[4:12, 5:16] = 255
        rgb = np.repeat((mask[..., None] > 0) * np.uint8(PASCAL_CLASSES.index(name) * 10), 3, axis=-1)
        Image.fromarray(mask).save(tmp_path / name / "1.png")
        Image.fromarray(rgb).save(tmp_path / name / "1.jpg", quality=100, subsampling=0)
    return open_dataset("mosaic4", tmp_path)


def test_a_mosaic_is_prompted_with_its_four_classes_at_once(mosaics: SegmentationData):
    requested: list[tuple[str, ...]] = []

    def near(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
        """Apply the oracle to JPEG colours, which are inexact."""
        requested.append(tuple(labels))
        seen = np.rint(rgb[..., 0] / 10).astype(int)
        return np.stack([seen == PASCAL_CLASSES.index(x) if x != "object" else seen > 0 for x in labels]).astype(float)

    outcome = evaluate(FunctionPredictor(near), mosaics, FAST)
    content = to_metrics(outcome)
    assert content["protocol"] == "mosaic4"
    assert (content["images"], content["pairs"]) == (2, 8)
    assert {len(labels) for labels in requested} == {1, 4}
    assert len({name for labels in requested if len(labels) == 4 for name in labels}) == 8
    assert content["miou"] == content["single_prompt_miou"] == content["background_iou"] == 100
    assert content["prompt_ablated_miou"] == pytest.approx(25)
    assert set(content["per_class"]) == set(PASCAL_CLASSES[1:9])
    assert "false_positive_area" not in content


def test_names_of_a_mosaic_compete(mosaics: SegmentationData):
    found = figures(evaluate(FunctionPredictor(saliency), mosaics, FAST))
    assert found["single_prompt_miou"] == pytest.approx(25, abs=1)
    assert found["miou"] < 10, "equal scores are not assigned to the first name"
