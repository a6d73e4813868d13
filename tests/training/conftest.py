"""A tiny PASCAL tree of coloured rectangles, and settings that train in milliseconds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.training.config import TrainConfig

IMAGES = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, as the child processes do, because sums depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def to_toml() -> Callable[[TrainConfig], str]:
    """Return a function that writes settings as TOML for `fusioner train --config`."""

    def write(config: TrainConfig) -> str:
        groups = config.to_dict()
        lines = [f"seed = {groups.pop('seed')}"]
        for name, values in groups.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        return "\n".join(lines)

    return write


def colour(class_id: int) -> tuple[int, int, int]:
    return (37 * class_id) % 256, (91 * class_id + 60) % 256, (151 * class_id + 120) % 256


def draw(class_ids: list[int], rng: np.random.Generator, size: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Draw a grey picture with a coloured rectangle per class; a strip of the mask is 255."""
    rgb, mask = np.full((size, size + 8, 3), 127, np.uint8), np.zeros((size, size + 8), np.uint8)
    for place, class_id in enumerate(class_ids):
        top, left = int(rng.integers(0, size // 3)), int(rng.integers(0, 6)) + place * 26
        area = np.s_[top : top + 26, left : left + 22]
        rgb[area], mask[area] = colour(class_id), class_id
    mask[-1] = 255
    return rgb, mask


@pytest.fixture(scope="session")
def voc_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 training images of aeroplanes, bicycles, birds, cats and dogs, two each, and a broken val image."""
    root = tmp_path_factory.mktemp("pascal")
    base, masks = root / "VOCdevkit" / "VOC2012", root / "SegmentationClassAug"
    for folder in (base / "JPEGImages", base / "ImageSets" / "Segmentation", masks):
        folder.mkdir(parents=True)
    rng, ids = np.random.default_rng(0), []
    shown = [[1, 8], [2, 12], [3, 8], [8, 12], [1, 2], [3]]
    for i in range(IMAGES):
        ids.append(f"2007_{i:06d}")
        rgb, mask = draw(shown[i % len(shown)], rng)
        Image.fromarray(rgb).save(base / "JPEGImages" / f"{ids[-1]}.jpg", quality=95)
        Image.fromarray(mask).save(masks / f"{ids[-1]}.png")
    (base / "JPEGImages" / "2008_000000.jpg").write_bytes(b"never read")
    (masks / "2008_000000.png").write_bytes(b"never read")
    lists = base / "ImageSets" / "Segmentation"
    lists.joinpath("train_aug.txt").write_text("\n".join(ids))
    lists.joinpath("val.txt").write_text("2008_000000\n")
    return root


@pytest.fixture
def train_words(
    voc_tree: Path, tiny: Callable[..., TrainConfig], to_toml: Callable[[TrainConfig], str], tmp_path: Path
) -> Callable[..., list[str]]:
    """Return `make(out, flags..., setting=value...)`, which builds a `train` command line of the tiny network.

    It uses the bundled encoders, because importing transformers would take most of the time.
    """

    def make(out: Path, *flags: str, **changes: Any) -> list[str]:
        encoders = {"image_encoder": "effnet-lite2", "text_encoder": "minilm-embedded", "similarity": "none"}
        settings = tmp_path / "tiny.toml"
        settings.write_text(to_toml(tiny(**encoders, **changes)))
        words = ["train", "pascal", "--root", str(voc_tree), "--config", str(settings), "--device", "cpu"]
        return [*words, "--cache", str(tmp_path / "cache"), "--out", str(out), *flags]

    return make


@pytest.fixture(scope="session")
def tiny(clip_folder: Path) -> Callable[..., TrainConfig]:
    """Return a function that overrides settings of a network that trains in milliseconds per step."""
    base = TrainConfig().override(
        image_encoder=f"clip-vit-b16@{clip_folder}",
        text_encoder=f"clip-text-b16@{clip_folder}",
        templates=("a photo of a {}",),
        resolution=32,
        width=16,
        layers=1,
        heads=2,
        decoder_widths=(16, 8),
        sampling="images",
        prompts=3,
        augment_prob=0.0,
        views=3,
        steps=6,
        batch_size=4,
        warmup=0.0,
        evaluations=2,
        loss_stride=2,
    )
    return lambda **changes: base.override(**changes)
