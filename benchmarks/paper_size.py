"""Build this package's model at the paper's size: CLIP ViT-L/14 (random weights), 12 x 512 fusion, full decoder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fusioner.encoders.image import ClipVision
from fusioner.features.build import cache_features
from fusioner.features.dataset import LiveSource
from fusioner.model.checkpoint import ModelCard
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.progress import progress
from fusioner.training.build import build_fabric
from fusioner.training.data_loader import Batch, DataLoader
from fusioner.training.dataset import build_corpus, open_split
from fusioner.training.presets import PAPER
from fusioner.training.prompt_sampling import Vocabulary
from fusioner.training.trainer import RunConfig, Trainer

SIDE = 224


def clip_large() -> ClipVision:
    """Return the image encoder of CLIP ViT-L/14 with random weights."""
    shape = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=SIDE,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    return ClipVision(CLIPVisionModelWithProjection(shape), "random-vit-l14")


def make_dataset(folder: Path, count: int) -> Path:
    """Write a data set of random 224 px images whose masks contain a rectangle, and return its folder."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[40:140, 60:180] = 1
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    (folder / "classes.txt").write_text("background\nthing\n")
    return folder


def training_steps(
    folder: Path, batch: int, encoder: ClipVision
) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """Return callables (gradients of a batch, update of the weights) by what is cached: text, or text and images."""
    data = make_dataset(folder / "data", batch)
    corpus = build_corpus([open_split("folder", data)], "pairs")
    config = PAPER.override(steps=10, batch_size=batch)
    live = LiveSource(corpus.splits[0].data, encoder, SIDE, views=1)
    cached = cache_features(folder / "cache", corpus.splits[0].data, encoder, SIDE)
    table = F.normalize(torch.randn(len(corpus.names()), 768), dim=-1)
    model = Fusioner(FusionerConfig())
    card = ModelCard(model.config, "", "", SIDE, ("{}",))
    steps = {}
    for name, source in (("text cached", live), ("everything cached", cached)):
        loader = DataLoader(corpus, [source], Vocabulary(corpus.names()), table, config)
        with progress() as bar:
            trainer = Trainer(
                build_fabric("cpu", 1, "32"), model, loader, config, card, RunConfig(folder / "run"), {}, bar
            )
        batches = loader.training_batches(0)
        steps[name] = (_gradients(trainer, batches), lambda trainer=trainer: trainer._update(1))
    return steps


def _gradients(trainer: Trainer, batches: Iterator[Batch]) -> Callable[[], None]:
    def work() -> None:
        batch = next(batches)
        trainer._loss_and_gradients(batch, batch.counts().tolist(), learn=True)

    return work
