"""Training images as per-patch features and class labels, for fitting the closed-set head.

Letters: B images, C classes plus "other", F features, P patches, S splits, V mask values, Gh Gw token grid.
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
from fusioner.training.data_loader import resize_mask
from fusioner.training.dataset import Corpus, DatasetSplit, Sample

CACHE_BYTES = 2**30
"""Size of the features kept in memory, which need not be encoded or read again."""


class SampleView(NamedTuple):
    """A sample, a view number, and whether the view is flipped."""

    sample: Sample
    view: int = 0
    flipped: bool = False


class PatchBatch(NamedTuple):
    """Patches of some images.

    Attributes:
        features: see `model.closed_set_head.features`.
        labels: class of each patch; the last class is "other", -1 is ignored.
        splits: the split of each image, whose classes alone compete for its patches.
    """

    features: Float[Tensor, "b p f"]
    labels: Int64[Tensor, "b p"]
    splits: Int64[Tensor, " b"]


class ClosedSetDataset:
    """The training images, each once.

    Attributes:
        samples: one per image.
        width: number of features F.
        allowed: 0 for each split's classes and "other", else minus infinity; (S, C).
        counts: patches of each class in each sample's image; (samples, C).
    """

    def __init__(self, model: Fusioner, corpus: Corpus, sources: Sequence[TokenSource], track: Track | None) -> None:
        self.model, self.sources = model, sources
        self.width = model.config.visual_dim + model.config.similarity_dim
        self.samples = corpus.unique_images()
        classes = {name: number for number, name in enumerate(corpus.names())}
        self.tables = [_label_table(split, classes) for split in corpus.splits]
        self.allowed = torch.full((len(self.tables), len(classes) + 1), -torch.inf)
        for number, table in enumerate(self.tables):
            self.allowed[number, np.unique(table[table >= 0])] = 0.0
        self._cache: dict[tuple[int, str, int], tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]] = {}
        self.counts = torch.zeros(len(self.samples), len(classes) + 1, dtype=torch.int64)
        height, width = self._read(self.samples[0], 0)[1].shape if self.samples else (0, 0)
        for number, sample in enumerate(track(self.samples, "reading masks") if track else self.samples):
            mask = corpus.splits[sample.split].data.read_mask(sample.item)
            labels = torch.from_numpy(self._labels(sample, mask, (height, width)))
            self.counts[number] = torch.bincount(labels[labels >= 0], minlength=len(classes) + 1)

    def views(self, sample: Sample) -> int:
        """Return the number of cached views of a sample; 1 (the image itself) if it is encoded live."""
        return self.sources[sample.split].views or 1

    def read(self, views: Sequence[SampleView]) -> PatchBatch:
        """Read some views; FusionerError for an unreadable image or mask."""
        grids = [
            [grid.flip(-1) if view.flipped else grid for grid in self._read(view.sample, view.view)] for view in views
        ]
        splits = torch.tensor([view.sample.split for view in views])
        patch_features, labels = (torch.stack(grid).flatten(-2) for grid in zip(*grids, strict=True))
        return PatchBatch(patch_features.mT.float(), labels, splits)

    def _read(self, sample: Sample, view: int) -> tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]:
        key = (sample.split, sample.item.id, view)
        if key in self._cache:
            return self._cache[key]
        tokens, masks = self.sources[sample.split].batch([(sample.item, view)])
        with torch.no_grad():
            visual, aligned = self.model.split_channels(tokens.cpu())
            grid = features(visual, log_posterior(aligned))[0].half()
        entry = grid, torch.from_numpy(self._labels(sample, masks[0], (grid.shape[1], grid.shape[2])))
        if (len(self._cache) + 1) * grid.nbytes < CACHE_BYTES:
            self._cache[key] = entry
        return entry

    def _labels(self, sample: Sample, mask: np.ndarray, grid: tuple[int, int]) -> Int64[np.ndarray, "gh gw"]:
        return self.tables[sample.split][resize_mask(mask, grid)]


def _label_table(split: DatasetSplit, classes: dict[str, int]) -> Int64[np.ndarray, " v"]:
    """Map mask values to classes; other values to the last class, ignored ones to -1."""
    table = np.full(split.data.ignore + 1, len(classes), np.int64)
    for class_id in split.classes:
        table[class_id] = classes[split.data.prompts[class_id]]
    table[list(split.ignored)] = -1
    return table
