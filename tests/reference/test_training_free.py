"""Compare training-free methods with the golden tensors of their public code (see README.md in the tensors' folder)."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from fusioner.encoders.base import Frozen
from fusioner.encoders.image import ClipVision, DenseEncoder, clip_vision_from_openai
from fusioner.encoders.proxyclip import ProxyEncoder, proxy_attention
from fusioner.model.checkpoint import ModelCard
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.postprocess import refine_by_pixels
from fusioner.segmenter import Segmenter

METHODS = ("maskclip", "sclip", "naclip", "clearclip", "proxyclip")
RAW = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the golden pixels are not normalised


class Patches(DenseEncoder):
    """The second encoder of the golden tensors, a convolution."""

    def __init__(self, kernel: Tensor) -> None:
        super().__init__("patches", kernel.shape[0], kernel.shape[-1], *RAW)
        self.kernel = torch.nn.Parameter(kernel)
        self.freeze()

    def tokens(self, pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, self.kernel, stride=self.stride)


class Rows(Frozen):
    """A text encoder whose texts are the row numbers of given embeddings."""

    name = "rows"

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings, self.dim = embeddings, embeddings.shape[1]

    def forward(self, texts: Any) -> Tensor:
        return self.embeddings[[int(text) for text in texts]]

    def fingerprint(self) -> str:
        return "rows"


@pytest.fixture(scope="module")
def golden(reference: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(reference / "training_free.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def build(golden: tuple[dict[str, str], dict[str, Tensor]], method: str) -> Segmenter:
    """Return a segmenter of the golden encoders with the windows, words and threshold of the public code."""
    metadata, tensors = golden
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    attention: Any = "values" if method == "proxyclip" else method
    plain = clip_vision_from_openai(state, heads=int(metadata["heads"]))
    encoder: Any = ClipVision(plain.model, method, *RAW, attention=attention)
    if method == "proxyclip":
        encoder = ProxyEncoder(encoder, Patches(tensors["input.guide"]), method)
    dim, scale = encoder.dim, float(metadata[f"scale.{method}"]) * float(metadata["sharpen"])
    config = FusionerConfig(
        image_dim=0, text_dim=dim, method="softmax", similarity="cosine", similarity_dim=dim, temperature=1 / scale
    )
    card = ModelCard(
        config,
        method,
        "rows",
        int(metadata["side"]),
        ("{}",),
        threshold=float(metadata["threshold"]),
        stride=int(metadata["stride"]),
        background=tuple(map(str, range(int(metadata["background"])))),
    )
    return Segmenter.from_parts(Fusioner(config), encoder, Rows(tensors["input.text"]), card)  # type: ignore[arg-type]


def assert_close(actual: np.ndarray, expected: Tensor) -> None:
    """Compare with golden planes, which hold every third row and column."""
    assert actual[:, ::3, ::3].shape == expected.shape
    assert np.abs(actual[:, ::3, ::3] - expected.numpy()).max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_scores_and_label_map(golden: tuple[dict[str, str], dict[str, Tensor]], method: str) -> None:
    _, tensors = golden
    segmenter = build(golden, method)
    temperature = segmenter.card.config.temperature
    image = tensors["input.pixels"][0].permute(1, 2, 0).numpy()
    names = [str(row) for row in range(len(tensors["input.text"]))]
    labels = names[len(segmenter.card.background) :]
    result = segmenter(image, labels)
    assert result.options.mode == "slide"
    differing = result.label_map != tensors[f"{method}.prediction"].numpy()
    assert differing.mean() < 1e-3, "more than ties differ"
    names_alone: Any = SimpleNamespace(expand=list, reduce=lambda scores, _: scores)
    segmenter.hierarchy = names_alone  # the scores before the softmax
    encoded = segmenter.encode(image)
    assert_close(segmenter.low_res_logits(encoded, names) * temperature, tensors[f"{method}.slide"])
    side = segmenter.card.resolution
    window = segmenter.encode(np.ascontiguousarray(image[:side, :side]))
    assert_close(segmenter.low_res_logits(window, names) * temperature, tensors[f"{method}.window"])


def test_an_image_of_one_colour_attends_to_itself() -> None:
    """With all cosines equal to 1, the published mask would exclude every position."""
    weights = proxy_attention(torch.ones(2, 1, 3, 4))
    assert torch.equal(weights, torch.eye(12).expand(2, -1, -1))


def test_pamr(reference: Path) -> None:
    with safe_open(reference / "pamr.safetensors", "np") as file:
        image, scores, expected = (file.get_tensor(name) for name in ("image", "scores", "refined"))
    found = refine_by_pixels(scores, image, 10)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert abs(found - scores).max() > 1
