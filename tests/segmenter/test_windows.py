"""Test that windows cover every pixel, stay within bounds, and are averaged (official values: tests/reference)."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fusioner.sliding_window import Canvas, WindowGrid

sizes, crops = st.integers(1, 40), st.integers(4, 30)


@given(sizes, sizes, st.integers(1, 30))
def test_windows_cover_every_pixel_and_none_is_redundant(height: int, width: int, crop: int) -> None:
    grid = WindowGrid(height, width, crop)
    seen = torch.zeros(height, width)
    for y, x in grid.origins:
        part = seen[y : y + crop, x : x + crop]
        assert part.numel()
        part += 1
    assert seen.min() >= 1
    assert grid.origins == sorted(grid.origins)


@given(sizes, sizes, crops, st.integers(4, 30), st.integers(1, 7))
def test_a_pixelwise_model_is_unchanged_by_windows(
    sliding_windows: Any, height: int, width: int, crop: int, stride: int, batch: int
) -> None:
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height * width))

    def predict(windows: Tensor) -> Tensor:
        assert windows.shape[1:] == (3, crop, crop)
        assert len(windows) <= 2 * batch
        return windows[:, :2] * 2

    for flip in (False, True):
        out = sliding_windows(image, crop, predict, stride=min(stride, crop), flip=flip, batch=batch)
        assert torch.allclose(out, image[:, :2] * 2, atol=1e-5)


def test_windows_start_at_multiples_of_two_thirds() -> None:
    assert WindowGrid(73, 117, 56).origins == [(0, 0), (0, 37), (0, 74), (37, 0), (37, 37), (37, 74)]
    assert WindowGrid(10, 20, 56).origins == [(0, 0)]
    assert WindowGrid(5, 1, 1).origins == [(row, 0) for row in range(5)]


def test_padding_lies_right_and_below() -> None:
    window = WindowGrid(5, 7, 8).cut(np.full((5, 7, 3), 9.0), [(0, 0)])[0]
    assert (window[:5, :7] == 9).all()
    assert not window[5:].any()
    assert not window[:, 7:].any()


def test_a_coarse_canvas_equals_the_downsampled_one() -> None:
    """With fewer cells than pixels, a smooth picture changes by no more than its variation within a cell."""
    grid = WindowGrid(200, 310, 64)
    y, x = torch.meshgrid(torch.linspace(0, 1, 200), torch.linspace(0, 1, 310), indexing="ij")
    image = (torch.sin(5 * y) + torch.cos(4 * x))[None, None]
    for side in (64, 20, 7, 1):
        canvas = Canvas(grid, side)
        for origin in grid.origins:
            window = torch.from_numpy(grid.cut(image[0].movedim(0, -1).numpy(), [origin])).movedim(-1, 1)
            inside = torch.nn.functional.adaptive_avg_pool2d(window, (side, side))
            canvas.add(inside.numpy(), origin)
        coarse = torch.from_numpy(canvas.mean())
        assert tuple(coarse.shape[-2:]) == canvas.size
        assert coarse.isfinite().all()
        full = torch.nn.functional.interpolate(coarse, size=(200, 310), mode="bilinear")
        if side >= 7:  # padding darkens the last cells, so compare the inside
            assert (full - image)[..., 12:-12, 12:-12].abs().max() < 6 / side


@given(sizes, sizes, crops, st.integers(1, 30))
def test_a_coarse_canvas_has_no_holes(height: int, width: int, crop: int, side: int) -> None:
    grid = WindowGrid(height, width, crop)
    canvas = Canvas(grid, min(side, crop))
    for origin in grid.origins:
        canvas.add(np.ones((2, canvas.side, canvas.side), np.float32), origin)
    np.testing.assert_allclose(canvas.mean(), np.ones((2, *canvas.size)), rtol=1e-6)
