"""Test the Segmenter with a toy network, from picture and labels to the result."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import fusioner
import fusioner.segmenter as segmenter_module
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import save_model
from fusioner.postprocess import upsample
from fusioner.segmenter import Segmenter

Make = Callable[..., Segmenter]
LABELS = ["cat", "sofa", "window"]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return data.chelsea()[:90, :130]


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("shape", [(90, 130), (1, 1), (7, 100), (32, 32), (33, 31)])
def test_any_size_of_image(tiny_segmenter: Segmenter, shape: tuple[int, int], mode: str) -> None:
    image = data.chelsea()[: shape[0], : shape[1]]
    result = tiny_segmenter(image, LABELS, mode=mode)  # type: ignore[arg-type]
    assert result.label_map.shape == shape
    assert set(result.scores) == set(LABELS)
    assert np.array_equal(result.image, image)


def test_set_image_once_then_many_labels(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    encoder = tiny_segmenter.image_encoder
    before = encoder.calls  # type: ignore[attr-defined]
    assert tiny_segmenter.set_image(photo) is tiny_segmenter
    for labels in (["cat"], LABELS, "cat, dog"):
        direct = tiny_segmenter(photo, labels)
        again = tiny_segmenter.segment(labels)
        assert np.array_equal(direct.label_map, again.label_map)
        assert direct.scores == again.scores
    assert encoder.calls == before + 1 + 3  # type: ignore[attr-defined]


def test_a_list_of_images_returns_a_list_of_results(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    pictures = [photo, Image.fromarray(photo), torch.from_numpy(photo.copy()).permute(2, 0, 1)]
    results = tiny_segmenter(pictures, ["cat"], threshold=0.4)
    expected = tiny_segmenter(photo, "cat", threshold=0.4).label_map
    assert [np.array_equal(result, expected) for result in results] == [True] * 3
    assert tiny_segmenter([], "cat") == []
    with pytest.raises(FusionerError, match=r"there is no image missing\.png"):
        tiny_segmenter(("missing.png",), "cat")


def test_reprs_are_short(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    assert repr(tiny_segmenter) == "<Segmenter of tiny-image and tiny-text, 32 px, on cpu>"
    assert len(repr(tiny_segmenter.encode(photo))) < 400
    assert {"load", "Client", "FusionerError"} <= set(dir(fusioner))


def test_without_an_image(tiny_segmenter: Segmenter) -> None:
    with pytest.raises(FusionerError, match="call set_image first"):
        tiny_segmenter.segment(["cat"])


def test_options_that_would_have_no_effect_are_refused(make_tiny_segmenter: Make, photo: np.ndarray) -> None:
    segmenter = make_tiny_segmenter()
    with pytest.raises(FusionerError, match="do not apply to mode slide"):
        segmenter(photo, "cat", mode="slide", guided_filter=True)
    with pytest.raises(FusionerError, match="do not apply to mode slide"):
        segmenter(photo, "cat", mode="slide", tta_scales=(1, 1.5))
    with pytest.raises(FusionerError, match="apply to mode slide, not to mode whole"):
        segmenter(photo, "cat", window=16)
    with pytest.raises(FusionerError, match=r"options of the encoding \(mode\) belong to set_image"):
        segmenter.set_image(photo).segment("cat", mode="slide")
    segmenter.network.size_step = 0  # as of a model exported for one size
    with pytest.raises(FusionerError, match="takes images of 32 px only"):
        segmenter(photo, "cat", tta_scales=(1, 1.5))


def test_threads_share_a_segmenter_and_an_image(
    make_tiny_segmenter: Make, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6)
    encoded = segmenter.encode(photo)
    names = [f"thing {i}" for i in range(40)]
    expected = {name: segmenter.low_res_logits(segmenter.encode(photo), [name])[0] for name in names}
    monkeypatch.setattr(segmenter_module, "LOGITS_CACHE_BYTES", 3 * expected[names[0]].nbytes)
    monkeypatch.setattr("fusioner.encoders.prompt_templates.CACHE_SIZE", 3)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            queries = [names[i % 37 : i % 37 + 3] for i in range(200)]
            for labels, logits in zip(
                queries, pool.map(lambda labels: segmenter.low_res_logits(encoded, labels), queries), strict=True
            ):
                np.testing.assert_allclose(logits, [expected[label] for label in labels], atol=1e-4)
    finally:
        sys.setswitchinterval(interval)


def test_calling_does_not_change_the_set_image(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    stored = tiny_segmenter.set_image(photo).segment(LABELS)
    tiny_segmenter(photo[::-1].copy(), LABELS)
    assert np.array_equal(tiny_segmenter.segment(LABELS).label_map, stored.label_map)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_order_of_labels_does_not_matter(tiny_segmenter: Segmenter, photo: np.ndarray, mode: str) -> None:
    encoded = tiny_segmenter.encode(photo, mode=mode)  # type: ignore[arg-type]
    there = tiny_segmenter.logits(encoded, LABELS)
    back = tiny_segmenter.logits(encoded, LABELS[::-1])
    assert there.shape == (3, 90, 130)
    assert np.allclose(there, back[::-1], atol=1e-3)
    assert there.std() > 0.1  # the toy network distinguishes pixels


def test_multicrop_averages_the_whole_image_and_four_crops(
    make_tiny_segmenter: Make, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6)  # labels are independent
    done: list[tuple[int, int]] = []
    encoded = segmenter.encode(photo, mode="multicrop", on_progress=lambda *step: done.append(step))
    assert done == [(step, 5) for step in range(1, 6)]
    assert encoded.crop_tokens is not None
    assert len(encoded.crop_tokens) == 4
    whole = segmenter.low_res_logits(segmenter.encode(photo, mode="whole"), ["cat", "sofa"])
    found = segmenter.low_res_logits(encoded, ["cat", "sofa"])
    assert found.shape[1] == found.shape[2] == 1.5 * whole.shape[1]
    crops = 2 * found - upsample(whole, (found.shape[1], found.shape[2]))
    first = segmenter.network.predict_logits(encoded.crop_tokens[:1], segmenter.embed(["cat", "sofa"]), None)[0]
    corner = len(first[0]) // 4  # covered by the first crop alone
    np.testing.assert_allclose(crops[:, :corner, :corner], first[:, :corner, :corner], atol=1e-4)
    alone = segmenter.low_res_logits(segmenter.encode(photo, mode="multicrop"), ["sofa"])[0]
    np.testing.assert_allclose(alone, found[1], atol=1e-4)
    monkeypatch.setattr(segmenter_module, "MIN_CROP_LOGIT", whole[0].max() + 1e-3)  # above all logits of "cat"
    assert whole[1].max() > whole[0].max() + 1e-3
    pruned = segmenter.low_res_logits(segmenter.encode(photo, mode="multicrop"), ["cat", "sofa"])
    np.testing.assert_allclose(pruned[0], upsample(whole, pruned.shape[1:])[0], atol=1e-4)
    np.testing.assert_allclose(pruned[1], found[1], atol=1e-4)
    (none,) = segmenter.low_res_logits(segmenter.encode(photo, mode="multicrop"), ["cat"])
    np.testing.assert_allclose(none, pruned[0], atol=1e-4)
    monkeypatch.undo()
    (batched,) = segmenter.encode_batch([photo], segmenter.resolve(mode="multicrop"))
    np.testing.assert_allclose(segmenter.low_res_logits(batched, ["cat", "sofa"]), found, atol=1e-4)
    segmenter.auto_mode = "multicrop"
    assert segmenter(photo, "cat", mode="auto").options.mode == "multicrop"


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({}, "whole"),
        ({"similarity": "cosine", "similarity_dim": 6}, "whole"),
        ({"similarity": "posterior", "similarity_dim": 5}, "multicrop"),
    ],
)
def test_crops_are_the_default_for_models_with_a_posterior(
    make_tiny_segmenter: Make, config: dict[str, Any], mode: str
) -> None:
    assert make_tiny_segmenter(**config).resolve().mode == mode


def test_logits_and_probabilities(tiny_segmenter: Segmenter, photo: np.ndarray) -> None:
    encoded = tiny_segmenter.encode(photo)
    low = tiny_segmenter.low_res_logits(encoded, LABELS)
    assert low.shape == (3, 16, 16)  # 32 px, stride 4, two decoder widths: 8 tokens, twice as many cells
    for size in (None, (45, 20)):
        logits = tiny_segmenter.logits(encoded, LABELS, size)
        assert logits.shape == (3, *(size or (90, 130)))
        assert np.allclose(tiny_segmenter.probabilities(encoded, LABELS, size), 1 / (1 + np.exp(-logits)), atol=1e-6)
    result = tiny_segmenter(photo, LABELS)
    p = tiny_segmenter.probabilities(encoded, LABELS)
    assert np.allclose(result.probabilities, p, atol=1e-3)
    assert (result.label_map == np.concatenate([np.full_like(p[:1], 0.5), p]).argmax(0)).mean() > 0.999


def test_threshold_and_background(make_tiny_segmenter: Make, photo: np.ndarray) -> None:
    segmenter = make_tiny_segmenter()
    assert not segmenter(photo, LABELS, threshold=1.0).label_map.any()
    full = segmenter(photo, LABELS, background=False)
    assert full.label_map.min() >= 1
    segmenter.card.threshold = 0.999
    assert segmenter(photo, LABELS).options.threshold == 0.999
    assert segmenter(photo, LABELS, threshold=0.2).options.threshold == 0.2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"labels": []}, "no labels"),
        ({"labels": ["cat", "CAT "]}, "named twice"),
        ({"labels": "cat,,dog"}, "label 2 of 3 is empty"),
        ({"threshold": 1.5}, "between 0 and 1"),
        ({"threshold": -0.1}, "between 0 and 1"),
        ({"threshold": "0.5"}, "between 0 and 1, not '0.5'"),
        ({"mode": "huge"}, "one of auto, whole, multicrop, slide, not 'huge'"),
        ({"image": "none.jpg"}, "there is no image none.jpg"),
    ],
)
def test_bad_input_is_one_sentence(tiny_segmenter: Segmenter, photo: np.ndarray, arguments: dict, reason: str) -> None:
    with pytest.raises(FusionerError, match=reason):
        tiny_segmenter(**({"image": photo, "labels": LABELS} | arguments))


def test_slide_without_blending_is_the_window_average(
    sliding_windows: Any, tiny_segmenter: Segmenter, photo: np.ndarray
) -> None:
    pixels = torch.tensor(photo).permute(2, 0, 1)[None] / 255
    text = tiny_segmenter.embed(LABELS)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        tokens = tiny_segmenter.image_encoder(windows)
        return tiny_segmenter.model(tokens, text.expand(len(windows), -1, -1), (32, 32))

    with torch.no_grad():
        expected = sliding_windows(pixels, 32, predict)[0]
    tiny_segmenter.overlap_blending = False
    assert np.allclose(
        tiny_segmenter.logits(tiny_segmenter.encode(photo, mode="slide"), LABELS), expected.numpy(), atol=1e-4
    )


def test_slide_within_a_memory_budget_is_nearly_equal(
    tiny_segmenter: Segmenter, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = tiny_segmenter.encode(photo, mode="slide")
    full = tiny_segmenter.logits(encoded, LABELS)
    monkeypatch.setattr(segmenter_module, "MAX_CANVAS_SIZE", len(LABELS) * photo.shape[0] * photo.shape[1] // 4)
    stored = tiny_segmenter.low_res_logits(encoded, LABELS)
    assert stored.shape == (3, 45, 65)
    coarse = tiny_segmenter.logits(encoded, LABELS)
    assert (coarse.argmax(0) == full.argmax(0)).mean() > 0.9
    monkeypatch.setattr(segmenter_module, "MAX_CANVAS_SIZE", 1)
    assert np.isfinite(tiny_segmenter.logits(encoded, LABELS)).all()


def test_labels_in_portions_where_they_are_independent(
    make_tiny_segmenter: Make, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = make_tiny_segmenter(similarity="cosine", similarity_dim=6, decoder_norm="layer")
    assert segmenter.model.config.labels_independent
    labels = [f"thing {number}" for number in range(5)]
    for mode in ("whole", "slide"):
        encoded = segmenter.encode(photo, mode=mode)
        whole = segmenter.low_res_logits(encoded, labels)
        for name in ("MAX_FEATURE_SIZE", "MAX_FEATURE_SIZE_CPU"):
            monkeypatch.setattr(segmenter_module, name, 1)
        portions = segmenter.low_res_logits(encoded, labels)
        monkeypatch.undo()
        assert np.allclose(whole, portions, atol=1e-4)
        alone = segmenter.low_res_logits(encoded, labels[3:4])
        assert np.allclose(whole[3:4], alone, atol=1e-4)


def test_non_finite_logits_are_an_error(make_tiny_segmenter: Make, photo: np.ndarray) -> None:
    segmenter = make_tiny_segmenter()
    next(segmenter.model.parameters()).data.fill_(torch.nan)
    with pytest.raises(FusionerError, match="NaN or Inf logits"):
        segmenter(photo, LABELS)


def test_a_checkpoint_of_other_encoders(make_tiny_segmenter: Make) -> None:
    tiny = make_tiny_segmenter()
    tiny.text_encoder.dim = 384
    with pytest.raises(FusionerError, match=r"trained on text vectors of width 6, encoder 'tiny-text' gives 384"):
        Segmenter.from_parts(tiny.model, tiny.image_encoder, tiny.text_encoder, tiny.card)
    tiny.image_encoder.dim = 768
    with pytest.raises(FusionerError, match=r"trained on image vectors of width 8, encoder 'tiny-image' gives 768"):
        Segmenter.from_parts(tiny.model, tiny.image_encoder, tiny.text_encoder, tiny.card)


@pytest.mark.parametrize("device", ["cuda:99", "mps", "tpu", "meta", "cuda:x"])
def test_missing_devices_are_one_sentence(make_tiny_segmenter: Make, device: str) -> None:
    if device == "mps" and torch.mps.is_available():
        pytest.skip("this machine has it")
    tiny = make_tiny_segmenter()
    with pytest.raises(FusionerError, match=r"there is no device|is not available on this machine"):
        Segmenter.from_parts(tiny.model, tiny.image_encoder, tiny.text_encoder, tiny.card, device)
    assert Segmenter.from_parts(tiny.model, tiny.image_encoder, tiny.text_encoder, tiny.card, "auto")


def test_a_checkpoint_whose_encoder_is_unknown(make_tiny_segmenter: Make, tmp_path: Path) -> None:
    tiny = make_tiny_segmenter()
    save_model(tmp_path / "model.safetensors", tiny.model, tiny.card)
    with pytest.raises(FusionerError, match="tiny-image"):
        Segmenter.from_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(FusionerError, match="no model file"):
        Segmenter.from_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.slow
def test_two_hundred_labels_on_three_megapixels_stay_below_one_gigabyte(tmp_path: Path) -> None:
    """Measure a separate process on logits as fine as the bundled model's, which take 2.4 GB if all are upsampled."""
    script = tmp_path / "many.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from fusioner.batch.worker import peak_memory\n"
        "from fusioner.options import InferenceOptions\n"
        "from fusioner.segmentation import Segmentation\n"
        "rng = np.random.default_rng(0)\n"
        "logits = rng.standard_normal((200, 37, 37), np.float32).repeat(8, 1).repeat(8, 2)\n"
        "image = np.zeros((1500, 2000, 3), np.uint8)\n"
        "names = [f'thing {i}' for i in range(200)]\n"
        "result = Segmentation.from_logits(image, names, logits, InferenceOptions(background=False))\n"
        "assert result.probability('thing 7').shape == (1500, 2000)\n"
        "result.save(sys.argv[1])\n"
        "print(peak_memory() // 2**20)\n"
    )
    done = subprocess.run([sys.executable, script, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1024
