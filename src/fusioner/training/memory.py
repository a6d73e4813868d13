"""Fitting the memory: patches drawn from training images, and a perceptron that learns to name them.

Letters: C names and "anything else", F features, P patches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from fusioner.features.plan import Track
from fusioner.features.source import TokenSource
from fusioner.model.fusioner import Fusioner
from fusioner.model.memory import PARTS, UNITS, Memory, features, log_posterior
from fusioner.training.batches import shrink
from fusioner.training.corpus import PORTIONS, Corpus, Part, portion_of
from fusioner.training.schedules import cosine

# All chosen on training images, see docs/accuracy.md.
IMAGES = 4000  # what patches are drawn from at most
PATCHES = 96  # of an image at most, the more of a class the rarer it is there
EPOCHS, BATCH, LEAST = 13, 2048, 100  # passes over the patches, patches a step, fewest steps
RATE, DECAY, DROPOUT = 1e-3, 1e-2, 0.3
SOME = 20_000  # patches from which mean and spread are taken
BALANCE = 0.25  # a class of n patches weighs n to the power of minus this


class Patches(NamedTuple):
    """Patches to learn from.

    Attributes:
        features: see `model.memory.features`.
        rows: of their names; the last row is "anything else".
        parts: the data set of each, whose names alone compete for it.
        portions: of the training images that each comes from.
    """

    features: Float16[Tensor, "p f"]
    rows: Int64[Tensor, " p"]
    parts: Int64[Tensor, " p"]
    portions: Int64[Tensor, " p"]

    def without(self, portion: int) -> "Patches":
        """Those of the other portions; all of them without -1."""
        return self if portion < 0 else Patches(*(one[self.portions != portion] for one in self))


def fit_memory(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    names: Float[Tensor, "n d"],
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> None:
    """Fill the model's memory with what the corpus shows of its names; held-out images are not looked at.

    Args:
        names: unit embeddings of `corpus.names()`, in its order.
        track: draws a bar.
        device: to fit on; None is the CPU.

    Raises:
        FusionerError: an unreadable image or mask.
    """
    similarity: Any = model.similarity
    memory: Memory = similarity.memory
    rows = {name: row for row, name in enumerate(corpus.names())}
    tables = [_lookup(part, rows) for part in corpus.parts]
    found = _draw(model, corpus, sources, tables, track, seed)
    allowed = torch.full((len(tables), len(rows) + 1), -torch.inf, device=device)
    for number, table in enumerate(tables):
        allowed[number, np.unique(table[table >= 0])] = 0.0
    memory.names.copy_(names)
    memory.known.copy_(torch.bincount(found.rows, minlength=len(rows) + 1)[:-1] > 0)
    learnt = [
        fit_perceptron(found.without(portion), allowed, what, track, seed)
        for portion, what in [(-1, "remembering"), *((i, f"but portion {i + 1}") for i in range(PORTIONS))]
    ]
    for name, parts in zip(PARTS, zip(*learnt, strict=True), strict=True):
        whole, *cross = (part.to(memory.names.device) for part in parts)
        getattr(memory, name).copy_(whole)
        setattr(memory, f"cross_{name}", torch.stack(cross))


def fit_perceptron(
    patches: Patches, allowed: Float[Tensor, "s c"], what: str = "", track: Track | None = None, seed: int = 0
) -> tuple[Float[Tensor, "u f"], Float[Tensor, " u"], Float[Tensor, "c u"], Float[Tensor, " c"]]:
    """Weights and biases of both layers (`model.memory.PARTS`), for features as they are; on `allowed`'s device.

    AdamW on the cross-entropy among the names of a patch's own data set.

    Args:
        allowed: 0 for the names of each data set, else minus infinity.
    """
    classes, width, count = allowed.shape[1], patches.features.shape[1], len(patches.rows)
    device = allowed.device
    if count < 2:
        return torch.zeros(UNITS, width), torch.zeros(UNITS), torch.zeros(classes, UNITS), torch.zeros(classes)
    some = patches.features[:: -(-count // SOME)].float().to(device)
    mean, spread = some.mean(dim=0), some.std(dim=0).clamp_min(1e-4)
    weights = _weights(patches.rows, classes).to(device)
    batch = min(BATCH, max(1, count // 8))
    steps = max(LEAST, EPOCHS * count // batch)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        first, last = nn.Linear(width, UNITS), nn.Linear(UNITS, classes)
        network = nn.Sequential(first, nn.GELU(), nn.Dropout(DROPOUT), last).to(device)
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        for step in track(range(steps), what) if track else range(steps):
            optimiser.param_groups[0]["lr"] = cosine(step, steps, RATE, 0.0)
            drawn = torch.randint(count, (batch,), generator=generator)
            given = (patches.features[drawn].to(device).float() - mean) / spread
            scores = network(given) + allowed[patches.parts[drawn].to(device)]
            loss = F.cross_entropy(scores, patches.rows[drawn].to(device), weight=weights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    scaled = first.weight.detach() / spread
    return scaled, first.bias.detach() - scaled @ mean, last.weight.detach(), last.bias.detach()


def _weights(rows: Int64[Tensor, " p"], classes: int) -> Float[Tensor, " c"]:
    """Of each class in the loss, 1 in the mean of all patches."""
    shown = torch.bincount(rows, minlength=classes).clamp_min(1).float()
    weights = shown.pow(-BALANCE)
    return weights * shown.sum() / (weights * shown).sum()


def _draw(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    tables: Sequence[Int64[np.ndarray, " v"]],
    track: Track | None,
    seed: int,
) -> Patches:
    """Up to `PATCHES` patches of each image; those of an image depend on it and the seed alone."""
    found: list[tuple[Tensor, ...]] = []
    images = corpus.some_images(IMAGES, seed)
    for example in track(images, "looking at patches") if track else images:
        tokens, masks = sources[example.part].batch([(example.item, 0)])
        with torch.no_grad():
            visual, aligned = model.split(tokens.cpu())
            seen = features(visual, log_posterior(aligned))[0]  # (F, Gh, Gw)
        rows = torch.from_numpy(tables[example.part][shrink(masks[0], (seen.shape[1], seen.shape[2]))].ravel())
        _, which, many = rows.unique(return_inverse=True, return_counts=True)
        chances = many[which].float().rsqrt() * (rows >= 0)
        count = min(PATCHES, int((rows >= 0).sum()))
        if count:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.multinomial(chances, count, generator=generator)
            about = (torch.full((count,), number) for number in (example.part, portion_of(example.item.id)))
            found.append((seen.flatten(1).T[drawn].half(), rows[drawn], *about))
    if not found:
        none = torch.zeros(0, dtype=torch.long)
        return Patches(torch.zeros(0, model.config.image_dim + model.config.aligned_dim).half(), none, none, none)
    return Patches(*(torch.cat(column) for column in zip(*found, strict=True)))


def _lookup(part: Part, rows: dict[str, int]) -> Int64[np.ndarray, " v"]:
    """Mask value -> row of its name; anything else the last; -1 where pixels count nowhere."""
    table = np.full(part.data.ignore + 1, len(rows), np.int64)
    for class_id in part.classes:
        table[class_id] = rows[part.data.prompts[class_id]]
    table[list(part.ignored)] = -1
    return table
