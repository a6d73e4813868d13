"""Fit the closed-set head: a segmentation network over frozen features that classifies every patch.

Letters: B images, C classes plus "other", F features, P patches, S splits, V mask values, Gh Gw token grid.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fusioner.data.masks import resize_mask
from fusioner.features.dataset import TokenSource
from fusioner.model.checkpoint import save_tensors
from fusioner.model.closed_set_head import ClosedSetSegmenter, features, log_posterior
from fusioner.model.fusioner import Fusioner
from fusioner.prefetch import map_ahead
from fusioner.progress import Track, no_progress
from fusioner.training.config import TrainConfig
from fusioner.training.dataset import CROSS_FIT_FOLDS, Corpus, DatasetSplit, Sample, cross_fit_fold
from fusioner.training.optim import warmup_cosine

CACHE_BYTES = 2**30  # of features kept in memory, which need not be encoded or read again

# Chosen on training images, see docs/accuracy.md.
BATCH_SIZE = 8
MIN_STEPS_PER_EPOCH, MAX_STEPS = 12.5, 4000
LR, WEIGHT_DECAY, GRAD_CLIP = 1e-3, 1e-2, 1.0
NORMALISATION_IMAGES = 64  # from which mean and standard deviation of the features are computed
CLASS_BALANCE = 0.25  # a class of n patches is weighted by n to the power of minus this
LOGIT_ADJUSTMENT = 0.4  # times log n is subtracted from a class's logit afterwards (arXiv 2007.07314)


class SampleView(NamedTuple):
    """A sample, a view number, and whether the view is flipped."""

    sample: Sample
    view: int = 0
    flipped: bool = False


class PatchBatch(NamedTuple):
    """Patches of some images."""

    features: Float[Tensor, "b p f"]  # see `model.closed_set_head.features`
    labels: Int64[Tensor, "b p"]  # class of each patch; the last class is "other", -1 is ignored
    splits: Int64[Tensor, " b"]  # split of each image, whose classes alone compete for its patches


class ClosedSetDataset:
    """The training images, each once."""

    def __init__(
        self,
        model: Fusioner,
        corpus: Corpus,
        sources: Sequence[TokenSource],
        track: Track,
        shared: Sequence[int] | None = None,
    ) -> None:
        """Read the masks; `shared` are the numbers of `shared_classes`, by default each name's own."""
        self.model, self.sources = model, sources
        self.width = model.config.visual_dim + model.config.similarity_dim  # F
        self.samples = list({sample.image: sample for sample in corpus.samples}.values())  # one per image
        names = corpus.names()
        classes = dict(zip(names, range(len(names)) if shared is None else shared, strict=True))
        self.tables = [_label_table(split, classes) for split in corpus.splits]
        # (S, C): 0 for each split's classes and "other", else minus infinity
        self.allowed = torch.full((len(self.tables), len(classes) + 1), -torch.inf)
        for number, table in enumerate(self.tables):
            self.allowed[number, np.unique(table[table >= 0])] = 0.0
        self._cache: dict[tuple[tuple[int, str], int], tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]] = {}
        # (samples, C): patches of each class
        self.counts = torch.zeros(len(self.samples), len(classes) + 1, dtype=torch.int64)
        height, width = self._read(self.samples[0], 0)[1].shape if self.samples else (0, 0)
        for number, sample in enumerate(track(self.samples, "reading masks")):
            mask = corpus.splits[sample.split].data.read_mask(sample.item)
            labels = self._labels(sample, mask, (height, width))
            self.counts[number] = torch.bincount(labels[labels >= 0], minlength=len(classes) + 1)

    def views(self, sample: Sample) -> int:
        """Return the number of cached views of a sample; 1 (the image itself) if it is encoded live."""
        return self.sources[sample.split].views or 1

    def read(self, views: Sequence[SampleView]) -> PatchBatch:
        """Return the patches of some views; raise FusionerError for an unreadable image or mask."""
        grids = [
            [grid.flip(-1) if view.flipped else grid for grid in self._read(view.sample, view.view)] for view in views
        ]
        splits = torch.tensor([view.sample.split for view in views])
        patch_features, labels = (torch.stack(grid).flatten(-2) for grid in zip(*grids, strict=True))
        return PatchBatch(patch_features.mT.float(), labels, splits)

    def _read(self, sample: Sample, view: int) -> tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]:
        key = (sample.image, view)
        if key in self._cache:
            return self._cache[key]
        tokens, masks = self.sources[sample.split].batch([(sample.item, view)])
        with torch.no_grad():
            visual, aligned = self.model.split_channels(tokens.cpu())
            grid = features(visual, log_posterior(aligned))[0].half()
        entry = grid, self._labels(sample, masks[0], (grid.shape[1], grid.shape[2]))
        if (len(self._cache) + 1) * grid.nbytes < CACHE_BYTES:
            self._cache[key] = entry
        return entry

    def _labels(self, sample: Sample, mask: np.ndarray, grid: tuple[int, int]) -> Int64[Tensor, "gh gw"]:
        return torch.from_numpy(self.tables[sample.split][resize_mask(mask, grid)])


def _label_table(split: DatasetSplit, classes: dict[str, int]) -> Int64[np.ndarray, " v"]:
    """Map mask values to classes; other values to the last class, ignored ones to -1."""
    table = np.full(split.data.ignore + 1, len(classes), np.int64)
    for class_id in split.classes:
        table[class_id] = classes[split.data.prompts[class_id]]
    table[list(split.ignored)] = -1
    return table


def shared_classes(names: Sequence[str], synonyms: Mapping[str, Sequence[str]]) -> list[int]:
    """Return each name's class: its own number, or the lower one of a name if both list each other as synonyms.

    Data sets name one thing differently (sofa and couch); their images then teach one class.
    """
    words = {label.casefold(): {word.casefold() for word in others} for label, others in synonyms.items()}
    folded = [name.casefold() for name in names]
    numbers = list[int]()
    for number, name in enumerate(folded):
        same = (i for i in range(number) if folded[i] in words.get(name, ()) and name in words.get(folded[i], ()))
        first = next(same, None)
        numbers.append(number if first is None else numbers[first])
    return numbers


@dataclass(frozen=True)
class FitCache:
    """Fitted networks on disk, so that a resumed run or another process need not fit them again."""

    folder: Path  # one file per network
    key: str  # describes the inputs of the fit; files with another key are not used
    writes: bool = True

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """Return the weights of a name, or None if they are missing, damaged or of another key."""
        with suppress(SafetensorError, OSError), safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            if (file.metadata() or {}).get("key") == self.key:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return None

    def put(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Write weights under a name; raise FusionerError if the file cannot be written."""
        if self.writes:
            save_tensors(self.folder / f"{name}.safetensors", state, {"key": self.key})


def fit_closed_set_head(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    class_embeddings: Float[Tensor, "n d"],
    config: TrainConfig,
    device: torch.device | None = None,
    track: Track = no_progress,
    cache: FitCache | None = None,
    shared: Sequence[int] | None = None,
) -> None:
    """Fit the model's closed-set head to the training images; held-out images are not used.

    Besides the network fitted to all images, one per cross-fitting fold is fitted without that fold, to be read in
    training for the fold's images. `class_embeddings` are the unit embeddings of `corpus.names()`, in its order.
    Names with one number in `shared` (see `shared_classes`) are one class, with the mean of their embeddings.
    """
    similarity: Any = model.similarity
    head = similarity.closed_set
    dataset = ClosedSetDataset(model, corpus, sources, track, shared)
    if shared is not None:
        sums = torch.zeros_like(class_embeddings).index_add(0, torch.tensor(shared), class_embeddings)
        class_embeddings = F.normalize(sums, dim=1)  # zero where a name shares another one's class
    head.set_names(class_embeddings, dataset.counts.sum(dim=0)[:-1] > 0)
    states = []
    for excluded in (-1, *range(CROSS_FIT_FOLDS)):  # -1: none
        name = "full" if excluded < 0 else f"without_{excluded}"
        title = f"closed-set head {excluded + 2}/{CROSS_FIT_FOLDS + 1}"
        state = cache.get(name) if cache else None
        if state is None:
            state = fit_closed_set(dataset, config, device, excluded, track, title).state_dict()
            if cache:
                cache.put(name, state)
        states.append(state)
    head.full.load_state_dict(states[0])
    head.cross_fit = [copy.deepcopy(head.full) for _ in range(CROSS_FIT_FOLDS)]
    for network, state in zip(head.cross_fit, states[1:], strict=True):
        network.load_state_dict(state)


def fit_closed_set(
    dataset: ClosedSetDataset,
    config: TrainConfig,
    device: torch.device | None = None,
    excluded_fold: int = -1,
    track: Track = no_progress,
    title: str = "",
) -> ClosedSetSegmenter:
    """Fit one closed-set network for unnormalised features; returned frozen, on the device.

    Minimises the cross-entropy over the classes of an image's own split with AdamW, on all views, half of them flipped,
    and a share of an image's patches per step (arXiv 2208.07220); logits are then adjusted for class frequency. A
    cross-fitting fold may be left out; -1: none.
    """
    used = [i for i, sample in enumerate(dataset.samples) if cross_fit_fold(sample.item.id) != excluded_fold]
    samples, counts = [dataset.samples[i] for i in used], dataset.counts[used].sum(dim=0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        network = ClosedSetSegmenter(dataset.width, dataset.allowed.shape[1] - 1).to(device)
        if not samples:
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
            return network.requires_grad_(False).eval()
        batch_size, patch_ratio = min(BATCH_SIZE, len(samples)), config.model.closed_set_patch_ratio
        steps_per_epoch = max(MIN_STEPS_PER_EPOCH, len(samples) / batch_size)
        steps = min(MAX_STEPS, int(config.model.closed_set_epochs * steps_per_epoch))
        mean, std = (statistic.to(device) for statistic in _feature_statistics(dataset, samples))
        weights, allowed = _class_weights(counts).to(device), dataset.allowed.to(device)
        optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
        with map_ahead(dataset.read, draw_views(dataset, samples, batch_size, steps, config.seed), 1) as batches:
            for step in track(range(steps), title):
                batch = next(batches)
                optimizer.param_groups[0]["lr"] = warmup_cosine(step, steps, LR, 0.0, min(50, steps // 10))
                num_patches = batch.labels.shape[1]
                patches = torch.randperm(num_patches)[: max(1, round(patch_ratio * num_patches))]
                logits = network((batch.features[:, patches].to(device) - mean) / std)
                logits = logits + allowed[batch.splits.to(device)][:, None]
                labels = batch.labels[:, patches].to(device)
                total = F.cross_entropy(
                    logits.flatten(0, 1), labels.flatten(), weights, ignore_index=-1, reduction="sum"
                )
                optimizer.zero_grad()
                (total / (weights[labels.clamp_min(0)] * (labels >= 0)).sum().clamp_min(1.0)).backward()
                nn.utils.clip_grad_norm_(network.parameters(), GRAD_CLIP)
                optimizer.step()
    network.requires_grad_(False).eval()
    network.last.bias.sub_(LOGIT_ADJUSTMENT * counts.clamp_min(1).log().to(device))
    network.first.weight.div_(std)
    network.first.bias.sub_(network.first.weight @ mean)
    return network


def draw_views(
    dataset: ClosedSetDataset, samples: list[Sample], batch_size: int, steps: int, seed: int
) -> Iterator[list[SampleView]]:
    """Yield the views of each step: every image once before any is repeated."""
    rng, queue = np.random.default_rng((seed, 4)), []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += rng.permutation(len(samples)).tolist()
        drawn, queue = [samples[i] for i in queue[:batch_size]], queue[batch_size:]
        yield [SampleView(sample, int(rng.integers(dataset.views(sample))), bool(rng.integers(2))) for sample in drawn]


def _feature_statistics(
    dataset: ClosedSetDataset, samples: list[Sample]
) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"]]:
    """Return mean and standard deviation of the features over some images."""
    stride = -(-len(samples) // NORMALISATION_IMAGES)
    patches = torch.cat([dataset.read([SampleView(sample)]).features[0] for sample in samples[::stride]])
    return patches.mean(dim=0), patches.std(dim=0).clamp_min(1e-4)


def _class_weights(counts: Int64[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Return the loss weight of each class, 1 on average over all patches."""
    patches = counts.clamp_min(1).float()
    weights = patches.pow(-CLASS_BALANCE)
    return weights * patches.sum() / (weights * patches).sum()
