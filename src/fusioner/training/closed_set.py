"""Fit the closed-set head: a segmentation network over frozen features that classifies every patch.

Letters: B images, C classes plus "other", F features, P patches.
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
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fusioner.features.build import Track
from fusioner.features.dataset import TokenSource
from fusioner.model.checkpoint import save_tensors
from fusioner.model.closed_set_head import ClosedSetSegmenter
from fusioner.model.fusioner import Fusioner
from fusioner.prefetch import map_ahead
from fusioner.training.closed_set_dataset import ClosedSetDataset, SampleView
from fusioner.training.dataset import CROSS_FIT_FOLDS, Corpus, Sample, cross_fit_fold
from fusioner.training.optim import warmup_cosine

# Chosen on training images, see docs/accuracy.md.
BATCH_SIZE = 8
MIN_STEPS, MAX_STEPS = 100, 4000
LR, WEIGHT_DECAY, GRAD_CLIP = 1e-3, 1e-2, 1.0
NORMALISATION_IMAGES = 64  # from which mean and standard deviation of the features are computed
CLASS_BALANCE = 0.25  # a class of n patches is weighted by n to the power of minus this
LOGIT_ADJUSTMENT = 0.4  # times log n is subtracted from a class's logit afterwards (arXiv 2007.07314)


class FitConfig(NamedTuple):
    """Length of the fit.

    Attributes:
        epochs: passes over the images.
        patch_ratio: share of an image's patches drawn in every step (PatchDropout, arXiv 2208.07220).
    """

    epochs: int = 8
    patch_ratio: float = 1.0


DEFAULT_FIT = FitConfig()


@dataclass(frozen=True)
class FitCache:
    """Fitted networks on disk, so that a resumed run or another process need not fit them again.

    Attributes:
        folder: one file per network.
        key: describes the inputs of the fit; files with another key are not used.
        writes: whether this process writes.
    """

    folder: Path
    key: str
    writes: bool = True

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """Return the weights of this name, or None if there are no usable ones."""
        with suppress(SafetensorError, OSError), safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            if (file.metadata() or {}).get("key") == self.key:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return None

    def put(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Write weights; FusionerError if the system refuses."""
        if self.writes:
            save_tensors(self.folder / f"{name}.safetensors", state, {"key": self.key})


def fit_closed_set_head(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    class_embeddings: Float[Tensor, "n d"],
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    fit: FitConfig = DEFAULT_FIT,
    cache: FitCache | None = None,
) -> None:
    """Fit the model's closed-set head to the training images; held-out images are not used.

    Besides the network fitted to all images, one per cross-fitting fold is fitted without that fold, to be read in
    training for the fold's images.

    Args:
        class_embeddings: unit embeddings of `corpus.names()`, in its order.
        track: draws progress bars.
        device: where to fit; None: the CPU.

    Raises:
        FusionerError: an unreadable image or mask, or a full disk.
    """
    similarity: Any = model.similarity
    head = similarity.closed_set
    dataset = ClosedSetDataset(model, corpus, sources, track)
    head.set_names(class_embeddings, dataset.counts.sum(dim=0)[:-1] > 0)
    states = []
    for excluded in (-1, *range(CROSS_FIT_FOLDS)):
        name = "full" if excluded < 0 else f"without_{excluded}"
        title = f"fitting closed-set head {excluded + 2} of {CROSS_FIT_FOLDS + 1}"
        state = cache.get(name) if cache else None
        if state is None:
            state = fit_closed_set(dataset, excluded, title, track, seed, device, fit).state_dict()
            if cache:
                cache.put(name, state)
        states.append(state)
    head.full.load_state_dict(states[0])
    head.cross_fit = [copy.deepcopy(head.full) for _ in range(CROSS_FIT_FOLDS)]
    for network, state in zip(head.cross_fit, states[1:], strict=True):
        network.load_state_dict(state)


def fit_closed_set(
    dataset: ClosedSetDataset,
    excluded_fold: int = -1,
    title: str = "",
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    fit: FitConfig = DEFAULT_FIT,
) -> ClosedSetSegmenter:
    """Fit one closed-set network for unnormalised features; returned frozen, on the device.

    Minimises the cross-entropy over the classes of an image's own split with AdamW, on all views, half of them flipped;
    logits are then adjusted for class frequency.

    Args:
        excluded_fold: cross-fitting fold to leave out; -1: none.
    """
    used = [i for i, sample in enumerate(dataset.samples) if cross_fit_fold(sample.item.id) != excluded_fold]
    samples, counts = [dataset.samples[i] for i in used], dataset.counts[used].sum(dim=0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = ClosedSetSegmenter(dataset.width, dataset.allowed.shape[1] - 1).to(device)
        if not samples:
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
            return network.requires_grad_(False).eval()
        batch_size = min(BATCH_SIZE, len(samples))
        steps = min(MAX_STEPS, max(MIN_STEPS, fit.epochs * len(samples) // batch_size))
        mean, std = (statistic.to(device) for statistic in _feature_statistics(dataset, samples))
        weights, allowed = _class_weights(counts).to(device), dataset.allowed.to(device)
        optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
        with map_ahead(dataset.read, draw_views(dataset, samples, batch_size, steps, seed), 1) as batches:
            for step in track(range(steps), title) if track else range(steps):
                batch = next(batches)
                optimizer.param_groups[0]["lr"] = warmup_cosine(step, steps, LR, 0.0, min(50, steps // 10))
                num_patches = batch.labels.shape[1]
                patches = torch.randperm(num_patches)[: max(1, round(fit.patch_ratio * num_patches))]
                logits = network((batch.features[:, patches].to(device) - mean) / std)
                labels = batch.labels[:, patches].to(device)
                logits = logits + allowed[batch.splits.to(device)][:, None]
                optimizer.zero_grad()
                _weighted_ce(logits, labels, weights).backward()
                nn.utils.clip_grad_norm_(network.parameters(), GRAD_CLIP)
                optimizer.step()
    network.requires_grad_(False).eval()
    network.last.bias.sub_(LOGIT_ADJUSTMENT * counts.clamp_min(1).log().to(device))
    network.first.weight.div_(std)
    network.first.bias.sub_(network.first.weight @ mean)
    return network


def _weighted_ce(
    logits: Float[Tensor, "b p c"], labels: Int64[Tensor, "b p"], weights: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Return the class-weighted mean cross-entropy over patches not ignored; 0 if there are none."""
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weights, ignore_index=-1, reduction="sum")
    return total / (weights[labels.clamp_min(0)] * (labels >= 0)).sum().clamp_min(1.0)


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
