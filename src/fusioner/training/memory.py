"""Fitting the memory: a closed-set segmenter learns to name every patch of the training images.

Letters: B images, C names and "anything else", F features, P patches, S data sets, V mask values.
"""

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
from safetensors.torch import save
from torch import Tensor, nn

from fusioner.ahead import map_ahead
from fusioner.features.plan import Track
from fusioner.features.source import TokenSource
from fusioner.files import atomic_write
from fusioner.model.fusioner import Fusioner
from fusioner.model.memory import ClosedSet, Memory, features, log_posterior
from fusioner.training.batches import shrink
from fusioner.training.corpus import PORTIONS, Corpus, Example, Part, portion_of
from fusioner.training.schedules import warmup_cosine

# Chosen on training images, see docs/accuracy.md.
EPOCHS, BATCH = 8, 8  # passes over the images, images a step
LEAST, MOST = 100, 4000  # steps
RATE, DECAY, CLIP = 1e-3, 1e-2, 1.0
SOME = 64  # images from which mean and spread of the features are taken
KEPT = 2**30  # bytes of features held ready, so that they need not be encoded or read again
BALANCE = 0.25  # a class of n patches weighs n to the power of minus this


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
        counts: patches of each name among all images, and of "anything else".
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
        counts, grid = np.zeros(len(rows) + 1, np.int64), None
        for example in track(self.examples, "looking at masks") if track else self.examples:
            if grid is None:
                grid = self.sources[example.part].batch([(example.item, 0)])[0].shape[-2:]
            found = self._rows(example, corpus.parts[example.part].data.read_mask(example.item), (grid[0], grid[1]))
            counts += np.bincount(found[found >= 0], minlength=len(counts))
        self.counts = torch.from_numpy(counts)
        self._kept: dict[tuple[int, str], tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]] = {}

    def read(self, wanted: Sequence[tuple[Example, bool]]) -> Lesson:
        """Some examples, each mirrored or not; FusionerError for an unreadable image or mask."""
        read = [self._read(example) for example, _ in wanted]
        turned = [
            [one.flip(-1) if mirrored else one for one in both]
            for both, (_, mirrored) in zip(read, wanted, strict=True)
        ]
        parts = torch.tensor([example.part for example, _ in wanted])
        features, rows = (torch.stack(some).flatten(-2) for some in zip(*turned, strict=True))
        return Lesson(features.mT.float(), rows, parts)

    def _read(self, example: Example) -> tuple[Float16[Tensor, "f gh gw"], Int64[Tensor, "gh gw"]]:
        name = (example.part, example.item.id)
        if name in self._kept:
            return self._kept[name]
        tokens, masks = self.sources[example.part].batch([(example.item, 0)])
        with torch.no_grad():
            visual, aligned = self.model.split(tokens.cpu())
            found = features(visual, log_posterior(aligned))[0].half()
        read = found, torch.from_numpy(self._rows(example, masks[0], (found.shape[1], found.shape[2])))
        if (len(self._kept) + 1) * found.nbytes < KEPT:
            self._kept[name] = read
        return read

    def _rows(self, example: Example, mask: np.ndarray, grid: tuple[int, int]) -> Int64[np.ndarray, "gh gw"]:
        return self.tables[example.part][shrink(mask, grid)]


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
            with atomic_write(self.folder / f"{name}.safetensors") as beside:
                plain = {key: tensor.cpu().contiguous() for key, tensor in state.items()}
                beside.write_bytes(save(plain, metadata={"mark": self.mark}))


def fit_memory(
    model: Fusioner,
    corpus: Corpus,
    sources: Sequence[TokenSource],
    names: Float[Tensor, "n d"],
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    share: float = 1.0,
    kept: Kept | None = None,
) -> None:
    """Fill the model's memory with what the corpus shows of its names; held-out images are not looked at.

    Args:
        names: unit embeddings of `corpus.names()`, in its order.
        track: draws a bar.
        device: to fit on; None is the CPU.
        share: of an image's patches that are looked at at a time, see `fit_closed_set`.
        kept: read what is there, keep what is not.

    Raises:
        FusionerError: an unreadable image or mask, or no space left.
    """
    similarity: Any = model.similarity
    memory: Memory = similarity.memory
    lessons = Lessons(model, corpus, sources, track)
    memory.names.copy_(names)
    memory.known.copy_(lessons.counts[:-1] > 0)
    learnt = []
    for without in (-1, *range(PORTIONS)):
        name, what = f"but_{without}", f"remembering part {without + 2} of {PORTIONS + 1}"
        network = ClosedSet(lessons.width, len(memory.names))
        state = kept.get(name) if kept else None
        if state is None:
            state = fit_closed_set(lessons, without, what, track, seed, device, share).state_dict()
            if kept:
                kept.put(name, state)
        network.load_state_dict(state)
        learnt.append(network.requires_grad_(False).eval())
    memory.whole.load_state_dict(learnt[0].state_dict())
    memory.cross = learnt[1:]


def fit_closed_set(
    lessons: Lessons,
    without: int = -1,
    what: str = "",
    track: Track | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    share: float = 1.0,
) -> ClosedSet:
    """A closed-set segmenter for features as they are, frozen, on the device.

    AdamW on the cross-entropy among the names of an image's own data set, all patches of all images, half of them
    mirrored.

    Args:
        without: portion of the images (`portion_of`) that is left out; -1: none.
        share: of an image's patches, drawn anew every step, that are looked at (PatchDropout, arXiv 2208.07220); the
            time falls faster than that.
    """
    examples = [example for example in lessons.examples if portion_of(example.item.id) != without]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = ClosedSet(lessons.width, lessons.allowed.shape[1] - 1).to(device)
        if not examples:  # then it says nothing
            nn.init.zeros_(network.last.weight)
            return network.requires_grad_(False).eval()
        batch = min(BATCH, len(examples))
        steps = min(MOST, max(LEAST, EPOCHS * len(examples) // batch))
        mean, spread = _scale(lessons, examples)
        mean, spread = mean.to(device), spread.to(device)
        weights, allowed = _weights(lessons.counts).to(device), lessons.allowed.to(device)
        optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
        with map_ahead(lessons.read, _draws(examples, batch, steps, seed), 1) as made:
            for step in track(range(steps), what) if track else range(steps):
                lesson = next(made)
                optimiser.param_groups[0]["lr"] = warmup_cosine(step, steps, RATE, 0.0, min(50, steps // 10))
                patches = lesson.rows.shape[1]
                some = torch.randperm(patches)[: max(1, round(share * patches))]
                scores = network((lesson.features[:, some].to(device) - mean) / spread)
                rows = lesson.rows[:, some].to(device)
                scores = scores + allowed[lesson.parts.to(device)][:, None]
                loss = F.cross_entropy(
                    scores.flatten(0, 1), rows.flatten(), weights, ignore_index=-1, reduction="sum"
                ) / (weights[rows.clamp_min(0)] * (rows >= 0)).sum().clamp_min(1.0)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), CLIP)
                optimiser.step()
    network.requires_grad_(False).eval()
    network.first.weight.div_(spread)
    network.first.bias.sub_(network.first.weight @ mean)
    return network


def _draws(examples: list[Example], batch: int, steps: int, seed: int) -> Iterator[list[tuple[Example, bool]]]:
    """What each step looks at: every image once before any comes again; and whether it is mirrored."""
    rng, waiting = np.random.default_rng((seed, 4)), []
    for _ in range(steps):
        while len(waiting) < batch:
            waiting += rng.permutation(len(examples)).tolist()
        drawn, waiting = waiting[:batch], waiting[batch:]
        yield [(examples[i], bool(rng.integers(2))) for i in drawn]


def _scale(lessons: Lessons, examples: list[Example]) -> tuple[Float[Tensor, " f"], Float[Tensor, " f"]]:
    """Mean and spread of the features over some images."""
    some = examples[:: -(-len(examples) // SOME)]
    found = torch.cat([lessons.read([(example, False)]).features[0] for example in some])
    return found.mean(dim=0), found.std(dim=0).clamp_min(1e-4)


def _weights(counts: Int64[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Of each class in the loss, 1 in the mean of all patches."""
    shown = counts.clamp_min(1).float()
    weights = shown.pow(-BALANCE)
    return weights * shown.sum() / (weights * shown).sum()


def _lookup(part: Part, rows: dict[str, int]) -> Int64[np.ndarray, " v"]:
    """Mask value -> row of its name; anything else the last; -1 where pixels count nowhere."""
    table = np.full(part.data.ignore + 1, len(rows), np.int64)
    for class_id in part.classes:
        table[class_id] = rows[part.data.prompts[class_id]]
    table[list(part.ignored)] = -1
    return table
