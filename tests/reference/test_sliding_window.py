"""Compare native-resolution inference and the decision with the tensors of the official implementation."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fusioner.encoders.image import ClipVision
from fusioner.model.checkpoint import ModelCard
from fusioner.model.fusioner import Fusioner
from fusioner.postprocess import decide
from fusioner.segmenter import Segmenter

Golden = tuple[dict[str, Tensor], dict[str, str]]
BLACK = -1.0  # -mean / std of the official mean = std = 0.5


def close(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_every_case(
    sliding_windows: Any, golden_windows: Golden, golden_network: Fusioner, golden_clip: ClipVision, batch: int
) -> None:
    tensors, sizes = golden_windows
    crop, stride, text = int(sizes["crop"]), int(sizes["stride"]), tensors["input.text"]
    assert stride == int(crop * 2 / 3)

    def predict(windows: Tensor) -> Tensor:
        return golden_network(golden_clip(windows), text.expand(len(windows), -1, -1), (crop, crop))

    cases = sorted({name.split(".")[0] for name in tensors if name.endswith(".image")})
    assert cases
    for case in cases:
        image = tensors[f"{case}.image"]
        assert close(sliding_windows(image, crop, predict, pad=BLACK, batch=batch), tensors[f"{case}.logits"])
        if f"{case}.logits_flip" in tensors:
            ours = sliding_windows(image, crop, predict, stride=stride, pad=BLACK, flip=True, batch=batch)
            assert close(ours, tensors[f"{case}.logits_flip"])


class Words:
    """A text encoder that returns the golden text embedding."""

    name = "golden"

    def __init__(self, vector: Tensor) -> None:
        self.vector, self.dim = vector, len(vector)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.vector.expand(len(texts), -1)

    def fingerprint(self) -> str:
        return "golden"


def test_the_segmenters_native_resolution_without_smoothness_is_the_official_one(
    sliding_windows: Any, golden_windows: Golden, golden_network: Fusioner, golden_clip: ClipVision
) -> None:
    """Use 8-bit images, which the encoder normalises itself."""
    tensors, sizes = golden_windows
    crop, vector = int(sizes["crop"]), tensors["input.text"][0, 0]
    card = ModelCard(golden_network.config, "golden", "golden", resolution=crop)
    segmenter = Segmenter.from_parts(golden_network, golden_clip, Words(vector), card)
    segmenter.overlap_blending = False
    names = sorted(name for name in tensors if name.endswith(".image"))
    images = [(tensors[name][0].sigmoid() * 255).round().to(torch.uint8).permute(1, 2, 0) for name in names]
    golden_clip.mean, golden_clip.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    try:
        ours = [segmenter.logits(segmenter.encode(image.numpy(), mode="slide"), ["it"]) for image in images]
    finally:
        golden_clip.mean, golden_clip.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for image, logits in zip(images, ours, strict=True):
        normalised = (image.permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
        unit = torch.nn.functional.normalize(vector, dim=0)[None, None]
        with torch.no_grad():
            expected = sliding_windows(
                normalised,
                crop,
                lambda windows, text=unit: golden_network(
                    golden_clip(windows), text.expand(len(windows), -1, -1), (crop, crop)
                ),
                pad=BLACK,
            )
        assert close(torch.from_numpy(logits), expected[0])


def test_the_decision(golden_fusion: Golden) -> None:
    tensors, _ = golden_fusion
    for logits, onehot in zip(tensors["output.logits"], tensors["output.labels_onehot"], strict=True):
        numbers = torch.from_numpy(decide(logits.sigmoid().numpy(), 0.5))
        ours = torch.stack([numbers == number for number in range(1, len(logits) + 1)])
        assert torch.equal(ours, onehot.bool())
