"""Calibrate training-free methods: reference words and the decision threshold.

The threshold is the z-score above reference words from which a label is assigned (`model.baselines`). It is chosen on
training images with the prompts of a training, never on test images.
Letters: B images, P prompts, h w loss size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.device import pick_device
from fusioner.encoders.dense_classifier import parse_names
from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES, NEUTRAL, LabelEmbedder
from fusioner.encoders.registry import build_image_encoder, build_text_encoder, value_tokens
from fusioner.model.baselines import NUM_REFERENCE_WORDS
from fusioner.model.checkpoint import ModelCard
from fusioner.model.config import Method
from fusioner.model.fusioner import Fusioner
from fusioner.progress import Track, no_progress
from fusioner.segmenter import Segmenter
from fusioner.training.build import build_network
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import DataLoader
from fusioner.training.losses import iou_counts, miou
from fusioner.weights import weights_file

NUM_IMAGES = 200
"""Largest number of training images used."""
CANDIDATES = tuple(round(0.1 * step, 1) for step in range(-10, 61))
"""Candidate z-score thresholds."""


def set_reference_words(model: Fusioner, embed: LabelEmbedder) -> None:
    """Set the text embeddings that the model's method compares with, or replaces prompts by; most methods have none."""
    if model.config.method == "prompt-ablated":
        model.neutral.copy_(embed([NEUTRAL])[0])
    elif model.baseline is not None and not model.baseline.is_empty:
        model.baseline.reference_words.copy_(embed(reference_words()))


def reference_words() -> list[str]:
    """Return the first name of every fifth of the 1000 ImageNet classes."""
    classes = parse_names(weights_file("imagenet_names.tsv").read_text("utf-8"))
    return [entry.synonyms[0] for entry in classes[:: len(classes) // NUM_REFERENCE_WORDS]]


@torch.no_grad()
def calibrate_threshold(model: Fusioner, loader: DataLoader, track: Track = no_progress) -> float:
    """Set the z-score threshold with the best mIoU on training images; return that mIoU in per cent."""
    assert model.baseline is not None
    samples, batch_size = loader.corpus.samples, loader.config.optim.batch_size
    drawn = sorted(np.random.default_rng((loader.config.seed, 4)).permutation(len(samples))[:NUM_IMAGES].tolist())
    starts = range(0, len(drawn), batch_size)
    counts = torch.zeros(len(CANDIDATES), loader.corpus.class_offsets[-1], 3)
    device = model.baseline.zscore_threshold.device
    model.baseline.zscore_threshold.zero_()
    for start in track(starts, "calibrating"):
        part = drawn[start : start + batch_size]
        batch = loader.build([samples[i] for i in part], [(i,) for i in part], training=False).to(device)
        zscores = model(batch.tokens, batch.text, batch.labels.shape[-2:])  # (B, P, h, w)
        for total, threshold in zip(counts, CANDIDATES, strict=True):
            total += iou_counts(zscores - threshold, batch, len(total)).cpu()
    score, threshold = max((miou(total), threshold) for total, threshold in zip(counts, CANDIDATES, strict=True))
    model.baseline.zscore_threshold.fill_(threshold)
    return score


def uncalibrated(
    method: Method,
    image_encoder: str,
    text_encoder: str,
    resolution: int,
    templates: Sequence[str] = (),
    device: str = "auto",
) -> Segmenter:
    """Build a training-free method with the default threshold of `model.baselines`."""
    name = value_tokens(image_encoder) if method == "maskclip" else image_encoder
    config = TrainConfig().override(image_encoder=name, text_encoder=text_encoder, method=method, resolution=resolution)
    image, text = build_image_encoder(name), build_text_encoder(text_encoder)
    embed = LabelEmbedder(text, tuple(templates) or DEFAULT_TEMPLATES)
    model = build_network(config, image, text)
    set_reference_words(model, embed)
    card = ModelCard(model.config, image.name, text.name, resolution, embed.templates)
    return Segmenter.from_parts(model, image, text, card, pick_device(device))


class NeutralEmbedder(LabelEmbedder):
    """Returns the embedding of the neutral prompt for every label."""

    def __call__(self, labels: Sequence[str]) -> Float[Tensor, "k d"]:
        return super().__call__([NEUTRAL]).expand(len(labels), -1)


def ablate_prompts(segmenter: Segmenter) -> Segmenter:
    """Replace every label by the neutral prompt from now on; return the segmenter itself."""
    segmenter.network.embed = NeutralEmbedder(segmenter.text_encoder, segmenter.embed.templates)
    return segmenter
