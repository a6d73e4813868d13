"""Deciding without torch is deciding with it: NumPy's functions against torch's on the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner import backend_numpy as plain
from fusioner.image import resize, resize_square
from fusioner.postprocess import chunks, decide, decide_logits, upsample
from fusioner.segmentation import Segmentation
from fusioner.sliding_window import Canvas, WindowGrid


def numbers(*shape: int, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 9),
)
@settings(max_examples=60)
def test_decides_alike(
    shape: tuple[int, int, int], size: tuple[int, int], threshold: float, background: bool, seed: int
) -> None:
    logits = numbers(*shape, seed=seed)
    (ours, best), (theirs, rival) = (
        decide_logits(one, size, threshold, background) for one in (logits, logits.numpy())
    )
    assert np.abs(best.numpy() - rival).max() < 1e-5
    planes = torch.cat([torch.full((1, *size), threshold if background else -1.0), upsample(logits, size).sigmoid()])
    sure = (planes.topk(2, dim=0).values.diff(dim=0)[0] < -1e-4).numpy()
    assert np.array_equal(ours.numpy()[sure], theirs[sure])
    for one, two in zip(chunks(logits, size), chunks(logits.numpy(), size), strict=True):
        assert np.abs(one.numpy() - two).max() < 1e-5


def test_equal_numbers_go_to_the_first_in_both() -> None:
    p = torch.full((3, 2, 2), 0.5)
    for one in (p, p.numpy()):
        assert int(decide(one, 0.5).max()) == 0
        assert int(decide(one, 0.4).min()) == int(decide(one, 0.4).max()) == 1


@pytest.mark.parametrize("values", [[-1e4, -90.0, 0.0, 90.0, 1e4]])
def test_sigmoid_of_large_numbers(values: list[float]) -> None:
    expected = torch.tensor(values).sigmoid().numpy()
    assert np.allclose(plain.sigmoid(np.array(values, np.float32)), expected, atol=1e-7)


def test_shrinks_pictures_as_torch_does() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (93, 140, 3), np.uint8)
    assert np.abs(plain.squash(rgb, 48) - resize_square(rgb, 48).numpy()).max() <= 1.01 / 255
    planes = numbers(2, 60, 80)
    assert np.allclose(plain.shrink(planes.numpy(), (20, 31)), resize(planes, (20, 31)).numpy(), atol=1e-4)


@pytest.mark.parametrize("smooth", [True, False])
def test_lays_windows_alike(smooth: bool) -> None:
    grid = WindowGrid(50, 70, 32, smooth=smooth)
    image = (numbers(1, 3, 50, 70).abs() * 40).to(torch.uint8)
    ours, theirs = grid.cut(image, grid.origins), grid.cut(image.numpy(), grid.origins)
    assert np.array_equal(ours.numpy(), theirs)
    one, two = Canvas(grid, 16), Canvas(grid, 16)
    for index, origin in enumerate(grid.origins):
        one.add(numbers(2, 16, 16, seed=index), origin)
        two.add(numbers(2, 16, 16, seed=index).numpy(), origin)
    assert np.allclose(one.mean().numpy(), two.mean(), atol=1e-5)


def test_a_segmentation_of_either_is_the_same() -> None:
    image, logits = np.zeros((40, 60, 3), np.uint8), numbers(3, 6, 8)
    ours, theirs = (Segmentation.from_logits(image, ["a", "b", "c"], one) for one in (logits, logits.numpy()))
    assert np.array_equal(ours.label_map, theirs.label_map)
    assert np.allclose(ours.confidence, theirs.confidence, atol=1e-3)
    assert np.allclose(ours.probabilities, theirs.probabilities, atol=1e-3)
    assert ours.scores == pytest.approx(theirs.scores, abs=1e-5)
