"""Comparison of two runs whose true difference is known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner.cli.main import main
from fusioner.data.base import SegmentationData
from fusioner.data.classes import PASCAL_CLASSES
from fusioner.errors import FusionerError
from fusioner.evaluation.bootstrap import summarize
from fusioner.evaluation.compare import Comparison, compare, select_images, write_comparison
from fusioner.evaluation.evaluate_report import write_report
from fusioner.evaluation.evaluator import EvaluationResult, evaluate
from fusioner.evaluation.predictor import FunctionPredictor
from fusioner.evaluation.protocols import EvaluationOptions
from fusioner.evaluation.results import (
    COUNTS_FILE,
    Counts,
    GroupCounts,
    PromptCounts,
    PromptPlan,
    SavedRun,
    load_counts,
    save_counts,
)

CLASSES = [f"class {i}" for i in range(4)]


def evidence(images: int, seed: int, better: float = 0.0, first: int = 0) -> Counts:
    """Return counts of two classes, where the IoU of each image is drawn around 0.5 + `better`."""
    rng = np.random.default_rng(seed)
    image, class_id = np.repeat(np.arange(images), 2), np.tile([1, 2], images)
    union = 100.0
    both = np.round(union * np.clip(rng.normal(0.5 + better, 0.15, len(image)), 0, 1))
    values = np.stack([900 - union + 0 * both, 900 - both, both, union + 0 * both] * 2, axis=1)
    right = np.stack([0 * both[::2], both[::2], both[1::2]], axis=1).astype(int)
    group = GroupCounts((1, 2), np.stack([right, right * 0 + 80, right * 0 + 90], axis=1), np.zeros((3, 3), int))
    absent = np.stack([0 * both, 1 - both / union, both < union], axis=1).astype(float)
    present = np.stack([0 * both + 1, both / union, both > 0], axis=1).astype(float)
    presence = PromptCounts(np.tile(image, 2), np.append(class_id + 2, class_id), np.concatenate([absent, present]))
    plan = PromptPlan("official", tuple(f"image {first + i}" for i in range(images)), groups={"unseen": (1, 2)})
    return Counts(plan, PromptCounts(image, class_id, values), presence, {"unseen": group}, [], [])


def stored(*folds: Counts, name: str = "run", classes: Sequence[str] = CLASSES) -> SavedRun:
    return SavedRun(Path(name), "pascal", list(classes), dict(enumerate(folds)))


def test_a_run_does_not_differ_from_itself():
    found = compare(stored(evidence(20, 0)), stored(evidence(20, 0)), n_resamples=200)
    for item in (*found.measures.values(), *found.per_class.values(), *found.argmax_per_class.values()):
        assert item.a == item.b
        assert (item.change.value, item.change.low, item.change.high, item.p) == (0, 0, 0, 1)
        assert not item.significant
    assert found.images == 20
    assert not found.notes


def test_a_clear_difference_is_found_and_has_the_right_sign():
    found = compare(stored(evidence(60, 0)), stored(evidence(60, 1, better=0.2)), n_resamples=500)
    for name in ("miou", "argmax_miou"):
        item = found.measures[name]
        assert item.change.value == pytest.approx(item.b - item.a)
        assert item.change.low > 5
        assert item.p < 0.01
        assert item.significant
    assert found.measures["false_positive_area"].change.high < 0


def test_measures_equal_those_of_each_run_alone():
    a, b = [evidence(9, 0), evidence(7, 1, first=5)], [evidence(9, 2), evidence(7, 3, first=5)]
    found = compare(stored(*a), stored(*b), n_resamples=50)
    for name, item in found.measures.items():
        assert item.a == pytest.approx(summarize(a, 1).measures[name].value)
        assert item.b == pytest.approx(summarize(b, 1).measures[name].value)


def test_the_interval_is_that_of_a_bootstrap_written_out_by_hand():
    a, b = evidence(15, 0), evidence(15, 1, better=0.1)

    def miou(e: Counts, drawn: np.ndarray) -> float:
        sums = [e.pairs.values.reshape(15, 2, 8)[drawn, k].sum(axis=0) for k in (0, 1)]
        return 100 * float(np.mean([row[2] / row[3] for row in sums]))

    rng = np.random.default_rng(9)
    samples = [miou(b, drawn) - miou(a, drawn) for drawn in rng.integers(0, 15, (3000, 15))]
    change = compare(stored(a), stored(b), n_resamples=3000).measures["miou"].change
    assert (change.low, change.high) == pytest.approx(tuple(np.percentile(samples, [2.5, 97.5])), abs=0.8)


def test_the_randomisation_test_equals_predictions_exchanged_by_hand():
    a, b = evidence(12, 0), evidence(12, 1, better=0.06)

    def difference(swap: np.ndarray) -> float:
        tables = [e.pairs.values.reshape(12, 2, 8) for e in (a, b)]
        first = np.where(swap[:, None, None], tables[1], tables[0]).sum(axis=0)
        second = np.where(swap[:, None, None], tables[0], tables[1]).sum(axis=0)
        return float(np.mean(second[:, 2] / second[:, 3]) - np.mean(first[:, 2] / first[:, 3]))

    observed = abs(difference(np.zeros(12, bool)))
    every = [abs(difference(np.array([n >> k & 1 for k in range(12)], bool))) for n in range(2**12)]
    exact = float(np.mean([value >= observed - 1e-12 for value in every]))
    assert compare(stored(a), stored(b), n_resamples=4000).measures["miou"].p == pytest.approx(exact, abs=0.03)


def test_equally_good_runs_rarely_differ_significantly():
    pairs = [(stored(evidence(25, 2 * i)), stored(evidence(25, 2 * i + 1))) for i in range(60)]
    found = [compare(a, b, n_resamples=200).measures["miou"] for a, b in pairs]
    assert sum(comparison.p < 0.05 for comparison in found) <= 8  # 3 expected; more than 8 has a chance of 0.2 %
    assert min(comparison.p for comparison in found) < 0.3 < max(comparison.p for comparison in found)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)), st.integers(2, 8))
def test_order_does_not_matter_and_only_common_images_count(order: list[int], remaining: int):
    a, b = evidence(8, 0), evidence(8, 1, better=0.1)
    names = [b.plan.images[i] for i in order[:remaining]]
    partly = compare(stored(a), stored(select_images(b, names)), n_resamples=20)
    both = compare(stored(select_images(a, sorted(names))), stored(select_images(b, sorted(names))), n_resamples=20)
    assert partly.measures == both.measures
    assert partly.per_class == both.per_class
    assert partly.images == remaining
    assert bool(partly.notes) == (remaining < 8)


def test_p_values_of_classes_are_adjusted_for_multiple_comparisons():
    a, b = evidence(30, 0), evidence(30, 1, better=0.08)
    found: Comparison = compare(stored(a), stored(b), n_resamples=1000)
    single = [compare(stored(_of(a, i)), stored(_of(b, i)), n_resamples=1000).per_class[CLASSES[i]].p for i in (1, 2)]
    low, high = sorted(single)
    assert sorted(item.p for item in found.per_class.values()) == pytest.approx([2 * low, max(2 * low, high)], abs=0.02)


def _of(e: Counts, class_id: int) -> Counts:
    keep = e.pairs.class_id == class_id
    rows = PromptCounts(e.pairs.image[keep], e.pairs.class_id[keep], e.pairs.values[keep])
    return replace(e, pairs=rows)


def test_a_class_without_images_is_left_out():
    a = evidence(5, 0)
    a.groups["unseen"].counts[:, :, 2] = 0
    item = compare(stored(a), stored(a), n_resamples=10).argmax_per_class[CLASSES[2]]
    assert np.isnan(item.change.value)
    assert item.p == 1
    assert not item.significant


def test_missing_values_are_null_and_text_is_kept(tmp_path: Path):
    a = evidence(5, 0)
    a.groups["unseen"].counts[:, :, 2] = 0
    found = compare(stored(a), stored(a), n_resamples=10)
    found.notes.append("a folder: NaN")
    write_comparison(tmp_path, found)
    content = json.loads((tmp_path / "compare.json").read_text())
    assert content["argmax_per_class"][CLASSES[2]]["change"]["value"] is None
    assert content["notes"][-1] == "a folder: NaN"


def test_runs_that_cannot_be_compared_are_refused():
    a = stored(evidence(5, 0))
    with pytest.raises(FusionerError, match="share no image"):
        compare(a, stored(evidence(5, 0, first=50)))
    with pytest.raises(FusionerError, match="data set"):
        compare(a, stored(evidence(5, 0), classes=["other"]))
    with pytest.raises(FusionerError, match="no fold in common"):
        compare(a, replace(stored(), folds={3: evidence(5, 0)}))
    with pytest.raises(FusionerError, match="different pairs"):
        compare(a, stored(_of(evidence(5, 0), 1)))


def test_differing_settings_are_listed():
    other = evidence(5, 0)
    other = replace(other, plan=replace(other.plan, threshold=0.3))
    notes = compare(stored(evidence(5, 0)), stored(other), n_resamples=10).notes
    assert notes == ["A has threshold 0.5, B 0.3: the difference is also one of settings"]


def oracle(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    words = {"dining table": "diningtable", "potted plant": "pottedplant", "tv monitor": "tvmonitor"}
    known = [words.get(label, label) for label in labels]
    return np.stack(
        [rgb[..., 0] // 10 == (PASCAL_CLASSES.index(name) if name in PASCAL_CLASSES else 99) for name in known]
    ).astype(np.float32)


def saliency(rgb: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    return np.stack([rgb[..., 0] >= 10 for _ in labels]).astype(np.float32)


@pytest.fixture
def runs(voc_data: SegmentationData, tmp_path: Path) -> tuple[Path, Path]:
    """Evaluate a predictor of classes and a saliency predictor; return their folders."""
    for name, function in (("named", oracle), ("salient", saliency)):
        outcome: EvaluationResult = evaluate(
            FunctionPredictor(function), voc_data, EvaluationOptions(folds=(0, 2), n_resamples=20)
        )
        paths = write_report(tmp_path / name, outcome, {"command": "fusioner evaluate"})
        assert tmp_path / name / COUNTS_FILE in paths
    return tmp_path / "named", tmp_path / "salient"


def test_counts_are_saved_and_loaded(voc_data: SegmentationData, tmp_path: Path):
    outcome = evaluate(FunctionPredictor(saliency), voc_data, EvaluationOptions(folds=(0, 2), n_resamples=20))
    save_counts(
        tmp_path, outcome.data.name, outcome.data.classes, {fold: item.counts for fold, item in outcome.folds.items()}
    )
    back = load_counts(tmp_path)
    assert back.dataset == "pascal"
    assert back.classes == list(voc_data.classes)
    again = summarize(list(back.folds.values()), 20)
    for table in ("measures", "per_class", "argmax_per_class"):  # as text, because some values are NaN
        assert str(getattr(again, table)) == str(getattr(outcome.summary, table))


def test_the_command_prints_the_better_run(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    named, salient = map(str, runs)
    out = tmp_path / "comparison"
    assert main(["compare", salient, named, "--out", str(out), "--n-resamples", "300"]) == 0
    printed = capsys.readouterr().out
    assert "multi-class mIoU" in printed
    assert "B better" in printed
    content = json.loads((out / "compare.json").read_text())
    assert content["measures"]["argmax_miou"]["b"] == 100
    assert content["measures"]["prompt_ablated_miou"]["change"]["value"] < 0
    assert content["measures"]["argmax_miou"]["significant"] is True
    page = (out / "compare.html").read_text()
    assert page.count("<svg") == len(content["measures"]) + len(content["per_class"]) + len(content["argmax_per_class"])
    assert "| multi-class mIoU (argmax) |" in (out / "compare.md").read_text()


@pytest.mark.parametrize("damage", ["none", "cut", "foreign"])
def test_a_folder_with_incomplete_counts_is_refused(
    damage: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    file = runs[1] / COUNTS_FILE
    if damage == "none":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    else:
        np.savez(file, numbers=np.arange(3))
    assert main(["compare", *map(str, runs)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "evaluate" in error
