"""What a model's card says about how it was made, so that it can be made again and cannot be tested on what it saw."""

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
"""Hex digits kept of an image's sha256: among 100,000 images each way, a false alarm has a chance of 1 in 28,000."""


def describe(
    corpus: Corpus,
    config: TrainConfig,
    encoders: tuple[ImageEncoder, TextEncoder],
    *,
    preset: str,
    command: str,
    initial: str | None = None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card's `training` entry: plain values. Reads every training image's file once.

    Where the training goes on from a model file, `initial` is its name and `before` its card's entry; its words and
    images are this model's, too, for neither is new to it.

    Keys: dataset, root, fold (None: all classes), also, classes (every word that was asked for), prompts, steps, seed,
    preset, settings, command, initial (None: weights drawn by the seed), versions, encoders (fingerprints),
    pairs_or_images, ids_sha256 (of the sorted ids) and images (see `image_marks`).
    """
    before = before or {}
    first, *further = corpus.parts
    items = [item for _, item in corpus.images]
    ids = "\n".join(sorted(f"{part.data.name}/{item.id}" for part, item in corpus.images))
    return {
        "dataset": first.data.name,
        "root": first.root.absolute().name,
        "fold": first.fold,
        "also": [[part.data.name, part.root.absolute().name] for part in further],
        "classes": list(dict.fromkeys([*corpus.names(), *before.get("classes", ())])),
        "prompts": config.prompts,
        "steps": config.steps,
        "seed": config.seed,
        "preset": preset,
        "settings": config.to_dict(),
        "command": command,
        "initial": initial,
        "versions": {"fusioner": __version__} | {name: version(name) for name in ("torch", "transformers")},
        "encoders": {"image": encoders[0].fingerprint(), "text": encoders[1].fingerprint()},
        "examples": len(corpus.examples),
        "held_out": len({(example.part, example.item.id) for example in corpus.held_out}),
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "images": sorted({*image_marks(items), *before.get("images", ())}),
    }


def image_marks(items: Sequence[Item]) -> list[str]:
    """The first digits of every image file's sha256, sorted, each once.

    An image to be evaluated on whose mark is among a card's `training["images"]` was trained on, whatever its name.
    FusionerError where a file cannot be read.
    """
    with ThreadPoolExecutor(4) as pool:
        return sorted(set(pool.map(lambda item: image_digest(read_bytes(item.image))[:DIGITS], items)))
