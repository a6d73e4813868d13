"""Repeated queries of one image: progress, cancelling, batches, cached logits, windows without seams."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from fusioner.options import InferenceOptions
from fusioner.postprocess import upsample
from fusioner.segmenter import LOGITS_CACHE_BYTES, Segmenter
from fusioner.sliding_window import Canvas, WindowGrid

LABELS = ["cat", "sofa", "window"]


class EnoughError(Exception):
    """An exception raised by the user's callback."""


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return data.chelsea()[:90, :130]


def test_on_progress_is_called_after_every_window(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    output: list[tuple[int, int]] = []
    tiny_segmenter(photo, LABELS, mode="slide", on_progress=lambda *numbers: output.append(numbers))
    windows = len(WindowGrid(90, 130, 32, smooth=True).origins)
    assert output == [(done, windows) for done in range(1, windows + 1)]


@pytest.mark.parametrize("work", ["call", "encode"])
def test_an_exception_of_on_progress_propagates(tiny_segmenter: Segmenter, photo: np.ndarray, work: str) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise EnoughError

    before = tiny_segmenter.image_encoder.calls  # type: ignore[attr-defined]
    call = partial(tiny_segmenter, photo, LABELS, mode="slide", on_progress=stop)
    encode = partial(tiny_segmenter.encode, photo, mode="slide", on_progress=stop)
    with pytest.raises(EnoughError):
        (call if work == "call" else encode)()
    assert tiny_segmenter.image_encoder.calls == before + 2  # type: ignore[attr-defined]
    assert tiny_segmenter(photo, LABELS).label_map.shape == (90, 130)


def test_slide_equals_encode_then_segment(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    at_once = tiny_segmenter(photo, LABELS, mode="slide")
    stored = tiny_segmenter.set_image(photo, mode="slide").segment(LABELS)
    torch.testing.assert_close(at_once.logits, stored.logits, atol=1e-3, rtol=1e-3)  # batch sizes differ


def test_a_batch_takes_one_forward_and_equals_single_images(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    images = [photo, photo[::-1].copy(), photo[:40, :50].copy()]
    before = tiny_segmenter.image_encoder.calls  # type: ignore[attr-defined]
    together = tiny_segmenter.encode_batch(images)
    assert tiny_segmenter.image_encoder.calls == before + 1  # type: ignore[attr-defined]
    for image, encoded in zip(images, together, strict=True):
        assert np.array_equal(encoded.image, image)
        torch.testing.assert_close(encoded.tokens, tiny_segmenter.encode(image).tokens)


def test_tta_scales_are_averaged(make_tiny_segmenter: Callable[..., Segmenter], photo: np.ndarray) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6)
    separate = [segmenter.low_res_logits(segmenter.encode(photo, scale=scale), LABELS) for scale in (1.0, 2.0)]
    segmenter.options = InferenceOptions(tta_scales=(1.0, 2.0))
    encoded = segmenter.encode(photo)
    fine = tuple(separate[1].shape[1:])
    expected = (upsample(separate[0], fine) + separate[1]) / 2
    torch.testing.assert_close(segmenter.low_res_logits(encoded, LABELS), expected)
    torch.testing.assert_close(segmenter(photo, LABELS).logits, expected)
    (first, second) = segmenter.encode_batch([photo, photo[::-1].copy()])
    torch.testing.assert_close(segmenter.low_res_logits(first, LABELS), expected)
    assert not np.allclose(segmenter.low_res_logits(second, LABELS), expected, atol=1e-3)
    encoded_tokens: list[object] = []
    segmenter.model.encode_image = lambda tokens: encoded_tokens.append(tokens)  # type: ignore[method-assign]
    for label in ("lamp", "rug", "tree"):
        segmenter.low_res_logits(second, [label])
    assert not encoded_tokens, "an image was encoded again"


def test_repeated_labels_are_not_computed_again(
    make_tiny_segmenter: Callable[..., Segmenter], photo: np.ndarray
) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6)  # labels are independent
    assert segmenter.model.config.labels_independent
    requested: list[int] = []
    segmenter.model.register_forward_pre_hook(lambda _, inputs: requested.append(inputs[1].shape[1]))
    encoded = segmenter.encode(photo)
    first = segmenter.low_res_logits(encoded, ["cat", "sofa"])
    again = segmenter.low_res_logits(encoded, ["sofa", "dog", "cat"])
    assert requested == [2, 1]
    assert np.array_equal(again[[2, 0]], first)
    assert encoded.nbytes == encoded.image.nbytes + encoded.tokens.nbytes + LOGITS_CACHE_BYTES


def test_an_image_is_encoded_once_for_many_queries(
    make_tiny_segmenter: Callable[..., Segmenter], photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6)
    encode_image, encoded = segmenter.model.encode_image, []
    monkeypatch.setattr(segmenter.model, "encode_image", lambda tokens: encoded.append(tokens) or encode_image(tokens))
    first, second = segmenter.encode(photo), segmenter.encode(photo[::-1].copy())
    logits = segmenter.low_res_logits(first, ["cat"])
    segmenter.low_res_logits(first, ["dog"])
    assert len(encoded) == 1
    other = segmenter.low_res_logits(second, ["cat"])
    assert len(encoded) == 2
    assert not np.array_equal(logits, other)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 32))
def test_smoothed_windows_agree_on_equal_content(height: int, width: int, crop: int) -> None:
    grid = WindowGrid(height, width, crop, smooth=True)
    canvas = Canvas(grid, crop)
    picture = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    for origin, window in zip(grid.origins, grid.cut(picture, grid.origins), strict=True):
        canvas.add(window.transpose(2, 0, 1), origin)
    np.testing.assert_allclose(canvas.mean()[0], picture[..., 0], rtol=1.3e-6, atol=1e-5)


def test_differing_windows_are_blended() -> None:
    def largest_step(smooth: bool) -> float:
        grid = WindowGrid(32, 74, 32, smooth=smooth)
        canvas = Canvas(grid, 32)
        for number, origin in enumerate(grid.origins):
            canvas.add(np.full((1, 32, 32), number % 2, np.float32), origin)
        return float(np.abs(np.diff(canvas.mean())).max())

    assert largest_step(smooth=False) == 0.5
    assert largest_step(smooth=True) < 0.15
