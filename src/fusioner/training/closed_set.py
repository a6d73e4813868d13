"""Fitting the memory: a closed-set segmenter learns to name every patch of the training images.

Letters: B images, C names and "anything else", F features, P patches.
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
from fusioner.model.closed_set_head import ClosedSet, Memory
from fusioner.model.fusioner import Fusioner
from fusioner.prefetch import map_ahead
from fusioner.training.closed_set_dataset import Lessons, Look
from fusioner.training.dataset import PORTIONS, Corpus, Example, portion_of
from fusioner.training.schedules import warmup_cosine

# Chosen on training images, see docs/accuracy.md.
BATCH = 8  # images a step
LEAST, MOST = 100, 4000  # steps
RATE, DECAY, CLIP = 1e-3, 1e-2, 1.0
SOME = 64  # images from which mean and spread of the features are taken
BALANCE = 0.25  # a class of n patches weighs n to the power of minus this
ADJUSTMENT = 0.4  # what the log of n takes from its logits afterwards (logit adjustment, arXiv 2007.07314)


class Effort(NamedTuple):
    """How long it is learnt.

    Attributes:
        passes: over the images.
        share: of an image's patches, drawn anew every step, that are looked at (PatchDropout, arXiv 2208.07220); the
            time falls faster than that.
    """

    passes: int = 8
    share: float = 1.0


USUAL = Effort()


@dataclass(frozen=True)
class Kept:
    """Where fitted segmenters are kept, so that a run that is taken up again need not fit them again.

    Attributes:
        folder: one file each.
        mark: of what they are fitted to; those of another mark are fitted anew.
        writes: whether this process is the one that writes.
    """

    folder: Path
    mark: str
    writes: bool = True

    def get(self, name: str) -> Mapping[str, Tensor] | None:
        """The weights kept by this name; None where there are none that can be used."""
        with suppress(SafetensorError, OSError), safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            if (file.metadata() or {}).get("mark") == self.mark:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return None

    def put(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Keep weights; FusionerError where the system refuses."""
        if self.writes:
            save_tensors(self.folder / f"{name}.safetensors", state, {"mark": self.mark})


def fit_memory(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    names: Float[Tensor, "n d"],
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    effort: Effort = USUAL,
    kept: Kept | None = None,
) -> None:
    """Fill the model's memory with what the corpus shows of its names; held-out images are not looked at.

    Args:
        names: unit embeddings of `corpus.names()`, in its order.
        track: draws a bar.
        device: to fit on; None is the CPU.
        kept: read what is there, keep what is not.

    Raises:
        FusionerError: an unreadable image or mask, or no space left.
    """
    similarity: Any = model.similarity
    memory: Memory = similarity.memory
    lessons = Lessons(model, corpus, sources, track)
    memory.learn(names, lessons.counts.sum(dim=0)[:-1] > 0)
    states = []
    for without in (-1, *range(PORTIONS)):
        name = "all" if without < 0 else f"but_{without}"
        what = f"remembering part {without + 2} of {PORTIONS + 1}"
        state = kept.get(name) if kept else None
        if state is None:
            state = fit_closed_set(lessons, without, what, track, seed, device, effort).state_dict()
            if kept:
                kept.put(name, state)
        states.append(state)
    memory.whole.load_state_dict(states[0])
    memory.cross = [copy.deepcopy(memory.whole) for _ in range(PORTIONS)]
    for network, state in zip(memory.cross, states[1:], strict=True):
        network.load_state_dict(state)


def fit_closed_set(
    lessons: Lessons,
    without: int = -1,
    what: str = "",
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    effort: Effort = USUAL,
) -> ClosedSet:
    """A closed-set segmenter for features as they are, frozen, on the device.

    AdamW on the cross-entropy among the names of an image's own data set, all patches of all images in any of their
    views, half of them mirrored; then what makes a name likelier for being common is taken away in part.

    Args:
        without: portion of the images (`portion_of`) that is left out; -1: none.
    """
    taught = [row for row, example in enumerate(lessons.examples) if portion_of(example.item.id) != without]
    examples, counts = [lessons.examples[row] for row in taught], lessons.counts[taught].sum(dim=0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = ClosedSet(lessons.width, lessons.allowed.shape[1] - 1).to(device)
        if not examples:  # then it says nothing
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
            return network.requires_grad_(False).eval()
        batch = min(BATCH, len(examples))
        steps = min(MOST, max(LEAST, effort.passes * len(examples) // batch))
        mean, spread = (one.to(device) for one in _scale(lessons, examples))
        weights, allowed = _weights(counts).to(device), lessons.allowed.to(device)
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        with map_ahead(lessons.read, draws(lessons, examples, batch, steps, seed), 1) as made:
            for step in track(range(steps), what) if track else range(steps):
                lesson = next(made)
                optimiser.param_groups[0]["lr"] = warmup_cosine(step, steps, RATE, 0.0, min(50, steps // 10))
                patches = lesson.rows.shape[1]
                some = torch.randperm(patches)[: max(1, round(effort.share * patches))]
                scores = network((lesson.features[:, some].to(device) - mean) / spread)
                rows = lesson.rows[:, some].to(device)
                scores = scores + allowed[lesson.parts.to(device)][:, None]
                optimiser.zero_grad()
                _loss(scores, rows, weights).backward()
                nn.utils.clip_grad_norm_(network.parameters(), CLIP)
                optimiser.step()
    network.requires_grad_(False).eval()
    network.last.bias.sub_(ADJUSTMENT * counts.clamp_min(1).log().to(device))
    network.first.weight.div_(spread)
    network.first.bias.sub_(network.first.weight @ mean)
    return network


def _loss(
    scores: Float[Tensor, "b p c"], rows: Int64[Tensor, "b p"], weights: Float[Tensor, " c"]
) -> Float[Tensor, ""]:
    """Cross-entropy, the mean of the patches that count by their class's weight; 0 where none counts."""
    total = F.cross_entropy(scores.flatten(0, 1), rows.flatten(), weights, ignore_index=-1, reduction="sum")
    return total / (weights[rows.clamp_min(0)] * (rows >= 0)).sum().clamp_min(1.0)


def draws(lessons: Lessons, examples: list[Example], batch: int, steps: int, seed: int) -> Iterator[list[Look]]:
    """What each step looks at: every image once before any comes again."""
    rng, waiting = np.random.default_rng((seed, 4)), []
    for _ in range(steps):
        while len(waiting) < batch:
            waiting += rng.permutation(len(examples)).tolist()
        drawn, waiting = waiting[:batch], waiting[batch:]
        some = [examples[i] for i in drawn]
        yield [Look(one, int(rng.integers(lessons.views(one))), bool(rng.integers(2))) for one in some]


def _scale(lessons: Lessons, examples: list[Example]) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"]]:
    """Mean and spread of the features over some images."""
    some = examples[:: -(-len(examples) // SOME)]
    found = torch.cat([lessons.read([Look(example)]).features[0] for example in some])
    return found.mean(dim=0), found.std(dim=0).clamp_min(1e-4)


def _weights(counts: Int64[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Of each class in the loss, 1 in the mean of all patches."""
    shown = counts.clamp_min(1).float()
    weights = shown.pow(-BALANCE)
    return weights * shown.sum() / (weights * shown).sum()
