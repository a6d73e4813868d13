"""The prompts (`PromptPlan`) and counts (`Counts`) of an evaluation, and the file that stores the counts.

Counts are kept per image, so that every measure and its bootstrap interval are sums over resampled rows.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from fusioner.data.base import Pair
from fusioner.errors import FusionerError
from fusioner.io import atomic_write, check_replaceable

IGNORED = 65535
"""Value of ignored pixels in the ground truth of an `Example`."""

COUNTS_FILE = "counts.npz"
_FORMAT = "fusioner-counts-3"
TABLES = ("pairs", "presence")


@dataclass(frozen=True)
class PromptPlan:
    """Prompts of an evaluation."""

    protocol: str  # its name in reports
    images: tuple[str, ...]  # ids of all images to visit
    pairs: tuple[Pair, ...] = ()  # prompts decided one at a time; a pair drawn twice is listed twice
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Classes prompted together, by name; the argmax decides. The group "all" is the protocol's own measure."""
    listed_only: bool = False  # prompt each image with only those classes of a group that `pairs` lists for it
    absent: int = 0  # maximum number of `prompted` classes prompted in an image without them, one at a time
    prompted: tuple[int, ...] = ()
    """Classes of the pairs and the absent prompts; where `absent` is set, also prompted alone where they are."""
    background: bool = True  # a pixel may belong to no class of a group
    background_prompts: tuple[str, ...] = ()
    """Further prompts of a group; the pixels they win are background, the threshold is not used."""
    include_background: bool = False  # in the protocol's mIoU
    threshold: float = 0.5  # minimum probability of a positive pixel
    eval_size: int | None = None  # px, side to which masks are resized (nearest); None: each mask's own size
    seed: int = 0  # of the choice of absent classes


class PromptCounts(NamedTuple):
    """One row per prompt: index into the plan's images, class prompted, and pixel counts or shares (see `Counts`)."""

    image: Int[np.ndarray, "n"]
    class_id: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "n v"]

    def take(self, rows: np.ndarray) -> "PromptCounts":
        """Return the rows of the given numbers or mask."""
        return PromptCounts(*(column[rows] for column in self))


@dataclass
class GroupCounts:
    """Argmax results of classes prompted together; index 0 of the arrays' classes is background."""

    class_ids: tuple[int, ...]  # in the order prompted
    counts: Int[np.ndarray, "n 3 c"]  # pixels of each image: correct, of the ground truth, predicted
    confusion: Int[np.ndarray, "c c"]  # (true, predicted), summed over images


@dataclass(frozen=True)
class Example:
    """A prediction to show, with its IoU in [0, 1]; value i (from 1) of the label maps is class labels[i - 1]."""

    score: float
    image: str
    labels: tuple[int, ...]
    prediction: Integer[np.ndarray, "h w"]
    truth: Integer[np.ndarray, "h w"]


@dataclass
class Counts:
    """All counts of an evaluation."""

    plan: PromptPlan
    pairs: PromptCounts
    """Values (background intersection, background union, foreground intersection, foreground union) of each pair
    prompted with its class name, then the same with the neutral prompt."""
    presence: PromptCounts
    """Values (1.0 if the class is in the image, share of the image predicted, 1.0 if a pixel was) of classes prompted
    alone."""
    groups: dict[str, GroupCounts]  # by the plan's names
    best: list[Example] = field(default_factory=list)  # best first
    worst: list[Example] = field(default_factory=list)  # worst first


@dataclass(frozen=True)
class SavedRun:
    """Counts read from a file: its folder, data set, class names by id, and counts by fold (None: no folds)."""

    folder: Path
    dataset: str
    classes: list[str]
    folds: dict[int | None, Counts]


def save_counts(folder: Path, dataset: str, classes: Sequence[str], folds: Mapping[int | None, Counts]) -> Path:
    """Write `COUNTS_FILE` atomically into `folder` and return its path."""
    arrays: dict[str, Any] = {}
    metadata: dict[str, Any] = {"format": _FORMAT, "dataset": dataset, "classes": list(classes), "folds": []}
    for number, (fold, counts) in enumerate(folds.items()):
        plan = {name: value for name, value in vars(counts.plan).items() if name not in ("images", "pairs", "groups")}
        groups = {name: list(group.class_ids) for name, group in counts.groups.items()}
        metadata["folds"].append({"fold": fold, "plan": plan, "groups": groups})
        arrays[f"{number}/images"] = np.array(counts.plan.images, dtype=np.str_)
        for name in TABLES:
            columns = getattr(counts, name)._asdict()
            arrays |= {f"{number}/{name}/{column}": array for column, array in columns.items()}
        for name, group in counts.groups.items():
            arrays[f"{number}/groups/{name}/counts"] = group.counts
            arrays[f"{number}/groups/{name}/confusion"] = group.confusion
    path = folder / COUNTS_FILE
    check_replaceable(path, b"metadata.npy")
    with atomic_write(path) as beside:
        np.savez_compressed(beside, metadata=np.array(json.dumps(metadata)), **arrays)
    return path


def load_counts(folder: Path) -> SavedRun:
    """Read the counts that `fusioner evaluate --out folder` has written; FusionerError if missing or corrupt."""
    path = Path(folder) / COUNTS_FILE
    if not path.is_file():
        raise FusionerError(f"{folder} has no {COUNTS_FILE}: give the --out folder of a `fusioner evaluate`")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            metadata = json.loads(str(file["metadata"]))
            if metadata.get("format") != _FORMAT:
                raise FusionerError(f"{path} was written by another version of fusioner: evaluate again")
            entries = enumerate(metadata["folds"])
            folds = {entry["fold"]: _read_fold(file, f"{number}/", entry) for number, entry in entries}
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise FusionerError(f"{path} is corrupt ({error}): evaluate again") from error
    return SavedRun(Path(folder), metadata["dataset"], metadata["classes"], folds)


def _read_fold(file: Mapping[str, np.ndarray], prefix: str, entry: Mapping[str, Any]) -> Counts:
    groups = {
        name: GroupCounts(tuple(ids), *(file[f"{prefix}groups/{name}/{part}"] for part in ("counts", "confusion")))
        for name, ids in entry["groups"].items()
    }
    tables: dict[str, Any] = {
        name: PromptCounts(*(file[f"{prefix}{name}/{column}"] for column in PromptCounts._fields)) for name in TABLES
    }
    plan: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["plan"].items()
    }
    return Counts(PromptPlan(images=tuple(file[f"{prefix}images"].tolist()), **plan), groups=groups, **tables)
