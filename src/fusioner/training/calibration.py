"""What is left to do for a method without training: fill in its words, and choose the level of its decision.

The level is how far above other words a label has to stand to be claimed (`model.baselines.Free`). It is one number,
and it is chosen on training images, with the names that a training would ask for; never on what is evaluated.
Letters: B images, P prompts, h w loss size.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.device import pick_device
from fusioner.encoders.bundled import weights_file
from fusioner.encoders.dense_classifier import parse_names
from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES, NEUTRAL, LabelEmbedder
from fusioner.encoders.registry import build_image_encoder, build_text_encoder, value_tokens
from fusioner.features.build import Track
from fusioner.model.baselines import WORDS
from fusioner.model.checkpoint import ModelCard
from fusioner.model.config import Method
from fusioner.model.fusioner import Fusioner
from fusioner.segmenter import Segmenter
from fusioner.training.build import build_network
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import Batches
from fusioner.training.running_iou import iou_counts, miou

IMAGES = 200
"""Training images that the level is chosen on, at most."""
LEVELS = tuple(round(0.1 * step, 1) for step in range(-10, 61))
"""Standard deviations among which it is chosen."""


def fill_words(model: Fusioner, embed: LabelEmbedder) -> None:
    """Give the model the embeddings that its method compares or replaces names with; most methods have none."""
    if model.config.method == "prompt-ablated":
        model.neutral.copy_(embed([NEUTRAL])[0])
    elif model.free is not None and not model.free.silent:
        model.free.words.copy_(embed(reference_words()))


def reference_words() -> list[str]:
    """The first names of every fifth of the thousand ImageNet classes."""
    classes = parse_names(weights_file("imagenet_names.tsv").read_text("utf-8"))
    return [one.synonyms[0] for one in classes[:: len(classes) // WORDS]]


@torch.no_grad()
def fit_level(model: Fusioner, batches: Batches, batch_size: int, seed: int, track: Track | None = None) -> float:
    """Set the level that is best on training images -> its mIoU there, per cent.

    Raises:
        FusionerError: an unreadable image or mask.
    """
    assert model.free is not None
    examples = batches.corpus.examples
    drawn = sorted(np.random.default_rng((seed, 4)).permutation(len(examples))[:IMAGES].tolist())
    starts = range(0, len(drawn), batch_size)
    counts = torch.zeros(len(LEVELS), batches.corpus.offsets[-1], 3)
    device = model.free.level.device
    model.free.level.zero_()
    for start in track(starts, "choosing the level") if track else starts:
        some = drawn[start : start + batch_size]
        batch = batches.build([examples[i] for i in some], [(i,) for i in some], training=False).to(device)
        deviations = model(batch.tokens, batch.text, batch.labels.shape[-2:])  # (B, P, h, w)
        for total, level in zip(counts, LEVELS, strict=True):
            total += iou_counts(deviations - level, batch, len(total)).cpu()
    score, level = max((miou(one), level) for one, level in zip(counts, LEVELS, strict=True))
    model.free.level.fill_(level)
    return score


def untrained(
    method: Method,
    image_encoder: str,
    text_encoder: str,
    resolution: int,
    templates: Sequence[str] = (),
    device: str = "auto",
) -> Segmenter:
    """A training-free method, ready: its level is the fixed `model.baselines.LEVEL`.

    Raises:
        FusionerError: encoders that cannot be had, or do not fit the method.
    """
    name = value_tokens(image_encoder) if method == "maskclip" else image_encoder
    config = TrainConfig(image_encoder=name, text_encoder=text_encoder, method=method, resolution=resolution)
    image, text = build_image_encoder(name), build_text_encoder(text_encoder)
    embed = LabelEmbedder(text, tuple(templates) or DEFAULT_TEMPLATES)
    model = build_network(config, image, text)
    fill_words(model, embed)
    card = ModelCard(model.config, image.name, text.name, resolution, embed.templates)
    return Segmenter(model, image, text, card, pick_device(device))


class Blind(LabelEmbedder):
    """Gives the neutral text's vector for every label."""

    def __call__(self, labels: Sequence[str]) -> Float[Tensor, "k d"]:
        """One and the same row a label."""
        return super().__call__([NEUTRAL]).expand(len(labels), -1)


def ablate_prompts(segmenter: Segmenter) -> Segmenter:
    """The segmenter itself, which from now on is told the neutral text in place of every name."""
    segmenter.embed = Blind(segmenter.text_encoder, segmenter.embed.templates)
    return segmenter
