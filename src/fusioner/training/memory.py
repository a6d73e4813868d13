"""Fitting the memory: one pass over training images, then linear algebra.

Letters: C names and "anything else", F features, P patches of an image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusioner.features.plan import Track
from fusioner.features.source import TokenSource
from fusioner.model.fusioner import Fusioner
from fusioner.model.memory import Memory, features, log_posterior
from fusioner.training.batches import shrink
from fusioner.training.corpus import PORTIONS, Corpus, Example, Part, portion_of

IMAGES = 4000  # what looks are taken from at most; more would change them little
SHRINKAGE = 0.6  # of the covariance towards a multiple of the identity; chosen on training images, see docs/accuracy.md


class Moments:
    """Sums from which discriminants follow. An image counts once for each class it shows, however large it is there.

    Attributes:
        count: images that show each class; total: of their mean features; scatter: of the mean outer products.
    """

    def __init__(self, classes: int, width: int) -> None:
        self.count = torch.zeros(classes)
        self.total = torch.zeros(classes, width)
        self.scatter = torch.zeros(width, width)

    def add(self, features: Float[Tensor, "p f"], rows: Int64[Tensor, " p"]) -> None:
        """One image's patches, each of the class `rows` says; -1 counts nowhere."""
        features, rows = features[rows >= 0], rows[rows >= 0]
        shown, index, patches = rows.unique(return_inverse=True, return_counts=True)
        weighted = features / patches[index, None]
        self.count[shown] += 1
        self.total.index_add_(0, rows, weighted)
        self.scatter += features.T @ weighted

    def __sub__(self, other: "Moments") -> "Moments":
        rest = Moments(*self.total.shape)
        rest.count, rest.total = self.count - other.count, self.total - other.total
        rest.scatter = self.scatter - other.scatter
        return rest

    def __add__(self, other: "Moments") -> "Moments":
        both = Moments(*self.total.shape)
        both.count, both.total = self.count + other.count, self.total + other.total
        both.scatter = self.scatter + other.scatter
        return both

    def discriminants(self) -> tuple[Float[Tensor, "c f"], Float[Tensor, " c"], Float[Tensor, " f"]]:
        """Looks, floors and centre (see `Memory`); zeros for classes no image shows."""
        seen = self.count > 0
        if not seen.any():
            return torch.zeros_like(self.total), torch.zeros_like(self.count), torch.zeros(self.total.shape[1])
        means = self.total / self.count.clamp_min(1)[:, None]
        within = (self.scatter - (means * self.count[:, None]).T @ means) / self.count.sum()
        spread = within.diagonal().mean().clamp_min(1e-8)
        within = (1 - SHRINKAGE) * within + SHRINKAGE * spread * torch.eye(len(within))
        centre = means[seen].mean(dim=0)
        offsets = torch.where(seen[:, None], means - centre, 0)
        looks = torch.linalg.solve(within, offsets.T).T
        return looks, (offsets * looks).sum(dim=1) / 2, centre


def fit_memory(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    names: Float[Tensor, "n d"],
    track: Track | None = None,
    seed: int = 0,
) -> None:
    """Fill the model's memory with what the corpus shows of its names; held-out images are not looked at.

    Args:
        names: unit embeddings of `corpus.names()`, in its order.
        track: draws a bar.

    Raises:
        FusionerError: an unreadable image or mask.
    """
    similarity: Any = model.similarity
    memory: Memory = similarity.memory
    rows = {name: row for row, name in enumerate(corpus.names())}
    portions = [Moments(len(rows) + 1, memory.looks.shape[1]) for _ in range(PORTIONS)]
    tables = [_lookup(part, rows) for part in corpus.parts]
    for example in track(_images(corpus, seed), "remembering") if track else _images(corpus, seed):
        tokens, masks = sources[example.part].batch([(example.item, 0)])
        with torch.no_grad():
            visual, aligned = model.split(tokens)
            found = features(visual, log_posterior(aligned))[0]  # (F, Gh, Gw)
        mask = shrink(masks[0], (found.shape[1], found.shape[2]))
        patches = torch.from_numpy(tables[example.part][mask].ravel())
        portions[portion_of(example.item.id)].add(found.flatten(1).T.cpu(), patches)
    whole = portions[0]
    for one in portions[1:]:
        whole = whole + one
    memory.names.copy_(names)
    for buffer, value in zip((memory.looks, memory.floors, memory.centre), whole.discriminants(), strict=True):
        buffer.copy_(value)
    cross = [(whole - one).discriminants() for one in portions]
    device = memory.looks.device
    memory.cross_looks, memory.cross_floors, memory.cross_centre = (
        torch.stack(parts).to(device) for parts in zip(*cross, strict=True)
    )


def _images(corpus: Corpus, seed: int) -> list[Example]:
    """Each training image once, at most `IMAGES` of them."""
    unique = list({(example.part, example.item.id): example for example in corpus.examples}.values())
    drawn = np.random.default_rng((seed, 3)).permutation(len(unique))[:IMAGES]
    return [unique[i] for i in sorted(drawn)]


def _lookup(part: Part, rows: dict[str, int]) -> np.ndarray:
    """Mask value -> row of its name; anything else the last; -1 where pixels count nowhere."""
    table = np.full(part.data.ignore + 1, len(rows), np.int64)
    for class_id in part.classes:
        table[class_id] = rows[part.data.prompts[class_id]]
    table[part.data.ignore] = -1
    return table
