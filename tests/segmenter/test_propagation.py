"""Test label propagation between similar patches."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fusioner
from fusioner.postprocess import MAX_GAIN, MAX_PENALTY, patch_affinity, propagate

GRID = 4, 5
SAMPLES = Path(__file__).parents[2] / "samples"


def two_objects(seed: int = 0) -> np.ndarray:
    """Return tokens (8, 4, 5) whose first two columns are alike, and the last three."""
    noise = np.random.default_rng(seed).normal(0, 0.05, (8, *GRID)).astype(np.float32)
    noise[0, :, :2] += 1
    noise[1, :, 2:] += 1
    return noise


def test_patches_are_weighted_by_similar_ones() -> None:
    weights = patch_affinity(two_objects())
    left = np.zeros(GRID, bool)
    left[:, :2] = True
    inside = np.equal.outer(left.ravel(), left.ravel())
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    assert weights[~inside].max() < 1e-3
    assert not weights.diagonal().any()


def test_a_patch_that_is_like_no_other_keeps_its_logits() -> None:
    tokens = two_objects()
    tokens[:, 0, 0] = -1  # far below the mean cosine
    logits = np.full((1, *GRID), 2, np.float32)
    found = propagate(logits, patch_affinity(tokens), GRID, 0.5)
    assert found[0, 0, 0] == 2
    assert found[0, 1:].min() > 3


def test_objects_are_completed_and_stray_patches_reduced() -> None:
    logits = np.full((1, *GRID), -2, np.float32)
    logits[0, :, :2] = 3
    logits[0, 1, 1] = -1  # missed inside the object
    logits[0, 2, 4] = 0.5  # found on the other one
    found = propagate(logits, patch_affinity(two_objects()), GRID, 0.5)[0] > 0
    expected = np.zeros(GRID, bool)
    expected[:, :2] = True
    np.testing.assert_array_equal(found, expected)


@given(seed=st.integers(0, 10_000), factor=st.integers(1, 3), threshold=st.floats(0.1, 0.9))
@settings(max_examples=20, deadline=None)
def test_labels_do_not_depend_on_each_other_and_change_within_bounds(seed: int, factor: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    affinity = patch_affinity(rng.normal(size=(8, *GRID)))
    logits = rng.normal(0, 4, (3, factor * GRID[0], factor * GRID[1])).astype(np.float32)
    found = propagate(logits, affinity, GRID, threshold)
    alone = propagate(logits[1:2], affinity, GRID, threshold)
    np.testing.assert_allclose(found[1:2], alone, atol=1e-4)
    assert found.shape == logits.shape
    assert -MAX_PENALTY - 1e-4 <= (found - logits).min() <= (found - logits).max() <= MAX_GAIN + 1e-4


def test_it_is_on_where_pixels_may_have_no_label() -> None:
    segmenter = fusioner.load()
    assert segmenter.resolve(mode="whole").label_propagation
    assert segmenter.resolve().label_propagation
    assert not segmenter.resolve(background=False).label_propagation
    assert not segmenter.resolve(mode="slide").label_propagation
    photo = SAMPLES / "chelsea.jpg"
    plain, spread = (segmenter(photo, "cat", mode="whole", label_propagation=on) for on in (False, True))
    assert not plain.options.label_propagation
    assert spread.options.label_propagation
    assert (plain.label_map != spread.label_map).any()
    assert (plain.label_map != spread.label_map).mean() < 0.05
