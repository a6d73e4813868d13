"""The training images as a closed-set segmenter is taught by them: what is seen of every patch, and which name it has.

Letters: B images, C names and "anything else", F features, P patches, S data sets, V mask values, Gh Gw token grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from fusioner.features.build import Track
from fusioner.features.dataset import TokenSource
from fusioner.model.closed_set_head import features, log_posterior
from fusioner.model.fusioner import Fusioner
from fusioner.training.data_loader import shrink
from fusioner.training.dataset import Corpus, Example, Part

KEPT = 2**30  # bytes of features held ready, so that they need not be encoded or read again


class Look(NamedTuple):
    """An example, the number of the view, and whether that is mirrored."""

    example: Example
    view: int = 0
    mirrored: bool = False


class Lesson(NamedTuple):
    """Some images to learn from.

    Attributes:
        features: of every patch, see `model.memory.features`.
        rows: of their names; the last row is "anything else", -1 counts nowhere.
        parts: the data set of each, whose names alone compete for its patches.
    """

    features: Float[Tensor, "b p f"]
    rows: Int64[Tensor, "b p"]
    parts: Int64[Tensor, " b"]


class Lessons:
    """The training images, each once, as `Lesson`s.

    Attributes:
        examples: one of each image.
        width: of the features.
        allowed: 0 for the names of each data set and "anything else", else minus infinity.
        counts: of each example, patches of each name, and of "anything else".
    """

    def __init__(self, model: Fusioner, corpus: Corpus, sources: Sequence[TokenSource], track: Track | None) -> None:
        self.model, self.sources = model, sources
        self.width = model.config.image_dim + model.config.aligned_dim
        self.examples = corpus.some_images(len(corpus.examples), 0)
        rows = {name: row for row, name in enumerate(corpus.names())}
        self.tables = [_lookup(part, rows) for part in corpus.parts]
        self.allowed = torch.full((len(self.tables), len(rows) + 1), -torch.inf)
        for number, table in enumerate(self.tables):
            self.allowed[number, np.unique(table[table >= 0])] = 0.0
        self._kept: dict[tuple[int, str, int], tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]] = {}
        self.counts = torch.zeros(len(self.examples), len(rows) + 1, dtype=torch.int64)
        grid = self._read(self.examples[0], 0)[1].shape if self.examples else (0, 0)
        for number, example in enumerate(track(self.examples, "looking at masks") if track else self.examples):
            mask = corpus.parts[example.part].data.read_mask(example.item)
            found = torch.from_numpy(self._rows(example, mask, (grid[0], grid[1])))
            self.counts[number] = torch.bincount(found[found >= 0], minlength=len(rows) + 1)

    def views(self, example: Example) -> int:
        """How many views there are of an example: those of the cache; of what is encoded now, the image itself."""
        return self.sources[example.part].views or 1

    def read(self, wanted: Sequence[Look]) -> Lesson:
        """Some looks at examples; FusionerError for an unreadable image or mask."""
        read = [self._read(look.example, look.view) for look in wanted]
        turned = [
            [one.flip(-1) if look.mirrored else one for one in both] for both, look in zip(read, wanted, strict=True)
        ]
        parts = torch.tensor([look.example.part for look in wanted])
        features, rows = (torch.stack(some).flatten(-2) for some in zip(*turned, strict=True))
        return Lesson(features.mT.float(), rows, parts)

    def _read(self, example: Example, view: int) -> tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]:
        name = (example.part, example.item.id, view)
        if name in self._kept:
            return self._kept[name]
        tokens, masks = self.sources[example.part].batch([(example.item, view)])
        with torch.no_grad():
            visual, aligned = self.model.split(tokens.cpu())
            found = features(visual, log_posterior(aligned))[0].half()
        read = found, torch.from_numpy(self._rows(example, masks[0], (found.shape[1], found.shape[2])))
        if (len(self._kept) + 1) * found.nbytes < KEPT:
            self._kept[name] = read
        return read

    def _rows(self, example: Example, mask: np.ndarray, grid: tuple[int, int]) -> Int64[np.ndarray, "gh gw"]:
        return self.tables[example.part][shrink(mask, grid)]


def _lookup(part: Part, rows: dict[str, int]) -> Int64[np.ndarray, " v"]:
    """Mask value -> row of its name; anything else the last; -1 where pixels count nowhere."""
    table = np.full(part.data.ignore + 1, len(rows), np.int64)
    for class_id in part.classes:
        table[class_id] = rows[part.data.prompts[class_id]]
    table[list(part.ignored)] = -1
    return table
