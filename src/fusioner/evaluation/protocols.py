"""Options and protocols of an evaluation: which classes are prompted on which images.

With folds, each (image, class) pair is prompted alone with its class name and decided at the threshold; pairs whose
image is not on disk are left out and counted. Benchmarks and own folders prompt all classes together on every image,
Mosaic-4 the four classes of a mosaic, and the argmax decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

import numpy as np
from cyclopts import Parameter

from fusioner.data.base import Pair, SegmentationData, present_pairs
from fusioner.data.folds import FOLD_DATASETS, fold_classes, val_pairs
from fusioner.errors import FusionerError
from fusioner.evaluation.results import PromptPlan

COCO_PAIRS = 1000
HSNET_SAMPLES = 1000
ABSENT_PROMPTS = 5  # per image: all of PASCAL's, a sample of COCO's 20
Protocol = Literal["official", "hsnet", "full"]


@Parameter(name="*", group="Protocol")
@dataclass(frozen=True)
class EvaluationOptions:
    """Options of the protocol and of scoring."""

    folds: Annotated[tuple[int, ...], Parameter(parse=False)] = (0, 1, 2, 3)
    """Folds of pascal, coco and coco-to-pascal; other data sets have none."""
    protocol: Protocol = "official"
    """official: PASCAL: every val pair once, COCO: the first 1000; hsnet: 1000 seeded samples; full: every pair."""
    images: Literal["fold", "all"] = "fold"
    """Images on which measures beyond the protocol are taken: those of the fold's pairs, or all val images (slower)."""
    threshold: float | Literal["model"] = 0.5
    """Minimum probability of a positive pixel; model: the one chosen on held-out training images."""
    eval_size: int | None = None
    """Score at this side in pixels, as the papers' 224; default: each mask's own size."""
    limit: int | None = None
    """Maximum number of images per fold, spread evenly; default: all."""
    seed: int = 0
    """Seed of hsnet's samples, the mosaics, the choice of absent classes and the bootstrap."""
    n_resamples: int = 1000
    """Bootstrap samples of the 95 % intervals."""


DEFAULT_OPTIONS = EvaluationOptions()


def make_plans(
    data: SegmentationData, options: EvaluationOptions
) -> dict[int | None, tuple[PromptPlan, tuple[int, int] | None]]:
    """Return the plan of each fold, with the number of its listed pairs and of those on disk.

    Raises FusionerError if none of a fold's pairs is on disk, or the limit is below 1.
    """
    plans: dict[int | None, tuple[PromptPlan, tuple[int, int] | None]] = {}
    if data.name in FOLD_DATASETS:
        plans |= {fold: fold_plan(data, fold, options) for fold in options.folds}
    else:
        plans[None] = plan_without_folds(data), None
    threshold = 0.5 if options.threshold == "model" else options.threshold
    settings = {"threshold": threshold, "eval_size": options.eval_size, "seed": options.seed}
    return {
        fold: (replace(limit_images(plan, options.limit), **settings), coverage)
        for fold, (plan, coverage) in plans.items()
    }


def fold_plan(data: SegmentationData, fold: int, options: EvaluationOptions) -> tuple[PromptPlan, tuple[int, int]]:
    """Return the plan of one fold of the val split of PASCAL-5i, COCO-20i or COCO to PASCAL.

    On every image it adds to the protocol: all unseen classes together (`argmax_miou`), all seen classes together (for
    `harmonic`), up to five absent unseen classes, one at a time (`false_positive_area`, `specificity`), and for every
    pair the neutral prompt in place of the class name (`prompt_ablated_miou`). Pixels of classes that are not prompted
    are background there.
    """
    protocol = options.protocol
    if protocol not in get_args(Protocol):
        raise FusionerError(f"there is no protocol {protocol!r}; choose one of {', '.join(get_args(Protocol))}")
    seen, unseen = fold_classes(data.name, fold)
    listed = val_pairs(data.name, fold)
    pairs = present_pairs(listed, data)
    coverage = len(listed), len(pairs)
    if not pairs:
        raise FusionerError(f"none of the {len(listed)} val pairs of {data.name} fold {fold} has its image on disk")
    if protocol == "official" and data.name == "coco":
        pairs = pairs[:COCO_PAIRS]
    if protocol == "hsnet":
        pairs = sample_pairs(pairs, HSNET_SAMPLES, options.seed)
    every = [item.id for item in data.items]
    plan = PromptPlan(
        protocol=protocol,
        images=tuple(every if options.images == "all" else sorted({image for image, _ in pairs})),
        pairs=tuple(pairs),
        groups={"unseen": unseen, "seen": seen},
        absent=ABSENT_PROMPTS,
        prompted=unseen,
    )
    return plan, coverage


def plan_without_folds(data: SegmentationData) -> PromptPlan:
    """Return the plan of a data set without folds.

    FSS-1000: every image once, prompted with its class. Mosaic-4: an image's four classes and background compete; in
    addition each class alone. Their masks annotate no other class, so there are no absent prompts. Benchmarks and own
    folders: all classes together on every image, and background if any.
    """
    images = tuple(item.id for item in data.items)
    if data.name in ("fss1000", "mosaic4"):
        tiles = ((item.id, tile.class_id) for item in data.items for tile in item.tiles or (item,))
        pairs = tuple((image, class_id) for image, class_id in tiles if class_id is not None)
        if data.name == "fss1000":
            return PromptPlan("full", images, pairs, prompted=data.class_ids)
        return PromptPlan("mosaic4", images, pairs, {"all": data.class_ids}, listed_only=True, prompted=data.class_ids)
    background = not data.ignore_unlabeled
    return PromptPlan(
        "argmax",
        images,
        groups={"all": data.class_ids},
        # Where 0 means "not annotated", a class may be in the image without being in the mask.
        absent=ABSENT_PROMPTS if background else 0,
        prompted=data.class_ids,
        background=background,
        background_prompts=data.background_prompts,
        include_background=data.include_background,
    )


def limit_images(plan: PromptPlan, images: int | None) -> PromptPlan:
    """Return the plan restricted to at most `images` images (None: all), spread evenly over the list."""
    if images is not None and images < 1:
        raise FusionerError(f"the limit must be at least one image, not {images}")
    if images is None or images >= len(plan.images):
        return plan
    chosen = [plan.images[i] for i in np.linspace(0, len(plan.images) - 1, images).round().astype(int)]
    pairs = tuple(pair for pair in plan.pairs if pair[0] in set(chosen))
    return replace(plan, images=tuple(chosen), pairs=pairs)


def sample_pairs(pairs: Sequence[Pair], samples: int, seed: int) -> list[Pair]:
    """Sample a class uniformly, then one of its pairs uniformly, `samples` times."""
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_class.setdefault(pair[1], []).append(pair)
    classes = sorted(by_class)
    drawn = (by_class[classes[rng.integers(len(classes))]] for _ in range(samples))
    return [of_class[rng.integers(len(of_class))] for of_class in drawn]
