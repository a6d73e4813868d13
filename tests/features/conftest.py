"""Small pictures with masks, and an encoder that counts the images it encodes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fusioner.data.base import SegmentationData
from fusioner.data.folder import folder
from fusioner.encoders.base import FrozenImageEncoder

# Red, green, blue: colour jitter of the views preserves the largest channel.
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], np.uint8)


class CountingEncoder(FrozenImageEncoder):
    """Averages of `stride` x `stride` pixels, projected to 8 numbers row by row to be independent of the batch."""

    name, dim, stride = "counting", 8, 4
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.encoded = 0
        self.weight = torch.nn.Parameter(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)))
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        cells = F.avg_pool2d((images - mean) / std, self.stride)
        return torch.stack([F.normalize(torch.einsum("dc,chw->dhw", self.weight, image), dim=0) for image in cells])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.weight.numpy().tobytes() + repr((self.mean, self.std)).encode()).hexdigest()


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def make_encoder() -> Callable[[int], CountingEncoder]:
    return CountingEncoder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write six pictures of coloured blocks to a new folder; the masks contain the index of the colour."""
    place = tmp_path / "set"
    for part in ("images", "masks"):
        (place / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        height, width = rng.integers(40, 90, 2)
        blocks = rng.integers(0, 3, (3, 4)).astype(np.uint8)
        mask = np.kron(blocks, np.ones((height // 3 + 1, width // 4 + 1), np.uint8))[:height, :width]
        Image.fromarray(COLOURS[mask]).save(place / "images" / f"{i}.png")
        Image.fromarray(mask).save(place / "masks" / f"{i}.png")
    (place / "classes.txt").write_text("background\ngreen\nblue\n")
    return place


@pytest.fixture
def data(root: Path) -> SegmentationData:
    return folder(root)
