"""The `training` entry of a model's card: how to train it again, and which images it must not be tested on."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

from fusioner import __version__
from fusioner.data.base import Item
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.features.cache import image_digest, read_bytes
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import Corpus

DIGITS = 12
"""Hex digits kept of an image's sha256: 100,000 images against 100,000 collide with a probability of 1 in 28,000."""


def describe_training(
    corpus: Corpus,
    config: TrainConfig,
    encoders: tuple[ImageEncoder, TextEncoder],
    *,
    preset: str,
    command: str,
    init_from: str | None = None,
    previous: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the card's `training` entry as plain values; reads every training image's file once.

    For a training that starts from a model file, `init_from` is its name and `previous` its card's entry, whose classes
    and images are included, because the new model has been trained on them as well.

    Keys: dataset, root, fold (None: all classes), extra_datasets, classes (every word that was prompted), prompts,
    steps, seed, preset, settings (`TrainConfig.to_dict`), command, init_from (None: random weights), versions, encoders
    (fingerprints), samples, held_out, ids_sha256 (of the sorted ids) and images (see `image_marks`).
    """
    previous = previous or {}
    first, *extra = corpus.splits
    items = [item for _, item in corpus.images]
    ids = "\n".join(sorted(f"{split.data.name}/{item.id}" for split, item in corpus.images))
    return {
        "dataset": first.data.name,
        "root": first.root.absolute().name,
        "fold": first.fold,
        "extra_datasets": [[split.data.name, split.root.absolute().name] for split in extra],
        "classes": list(dict.fromkeys([*corpus.names(), *previous.get("classes", ())])),
        "prompts": config.data.prompts,
        "steps": config.optim.steps,
        "seed": config.seed,
        "preset": preset,
        "settings": config.to_dict(),
        "command": command,
        "init_from": init_from,
        "versions": {"fusioner": __version__} | {name: version(name) for name in ("torch", "transformers")},
        "encoders": {"image": encoders[0].fingerprint(), "text": encoders[1].fingerprint()},
        "samples": len(corpus.samples),
        "held_out": len({(sample.split, sample.item.id) for sample in corpus.held_out}),
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "images": sorted({*image_marks(items), *previous.get("images", ())}),
    }


def image_marks(items: Sequence[Item]) -> list[str]:
    """Return the first digits of every image file's sha256, sorted, each once.

    A test image whose mark is among a card's `training["images"]` was trained on, whatever its file name.

    Raises:
        FusionerError: a file cannot be read.
    """
    with ThreadPoolExecutor(4) as pool:
        return sorted(set(pool.map(lambda item: image_digest(read_bytes(item.image))[:DIGITS], items)))
