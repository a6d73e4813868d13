"""What each protocol asks: the plans of PASCAL-5i, COCO-20i, FSS-1000 and a user's own folder.

- `official`: PASCAL: every val pair of the fold once; COCO: the first 1000 pairs, sorted by image, then class.
- `hsnet`: 1000 draws with a seed: a class of the fold, then one of its pairs (an image may be drawn again).
- `full`: every val pair of the fold once.
- `mosaic4`: the four names of a mosaic prompted together, the likeliest wins; see `data.mosaic4`.
- `argmax` (benchmarks, own folders): all classes prompted together on every image, the likeliest wins.

In the first three each pair is prompted alone with its class's name and decided at the threshold; what is listed but
not on disk is left out and counted. Beside them stand the measures the binary protocol leaves out (see `fold_plan`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from fusioner.data.base import Pair, PairCoverage, SegmentationData, present_pairs
from fusioner.data.folds import SplitLists, fold_classes, fold_pairs
from fusioner.data.mosaic4 import Mosaic
from fusioner.errors import FusionerError
from fusioner.evaluation.results import Plan

Protocol = Literal["official", "hsnet", "full"]
Scope = Literal["fold", "all"]
COCO_PAIRS = 1000
HSNET_DRAWS = 1000
ABSENT_PROMPTS = 5  # per image: all of PASCAL's, a sample of COCO's 20


def fold_plan(
    data: SegmentationData,
    fold: int,
    protocol: Protocol = "official",
    *,
    lists: SplitLists = "official",
    scope: Scope = "fold",
    seed: int = 0,
) -> tuple[Plan, PairCoverage]:
    """The plan of one fold of PASCAL-5i, COCO-20i or COCO to PASCAL, with the honest measures beside the protocol.

    On every image: all unseen classes together (`argmax_miou`), all seen classes together (for `harmonic`), up to five
    unseen classes that are not in it, one at a time (`false_positive_area`, `specificity`), and for every pair the
    neutral text in place of the name (`prompt_ablated_miou`). Pixels of classes not prompted are background there.

    Args:
        data: the opened val split.
        scope: visit the images of the fold's pairs only ("fold"), or every image of the split ("all": also those
            without any of the fold's classes, where every claim is wrong; slower).
        seed: of the draws of `hsnet` and the choice of absent classes.

    Raises:
        FusionerError: an unknown protocol, a set without folds, or no pair of the fold on disk.
    """
    if protocol not in get_args(Protocol):
        raise FusionerError(f"there is no protocol {protocol!r}; choose one of {', '.join(get_args(Protocol))}")
    seen, unseen = fold_classes(data.name, fold)
    pairs, missing = present_pairs(fold_pairs(data.name, fold, "val", lists), data)
    if not pairs:
        raise FusionerError(f"none of the {missing.listed} val pairs of {data.name} fold {fold} has its image on disk")
    if protocol == "official" and data.name == "coco":
        pairs = pairs[:COCO_PAIRS]
    if protocol == "hsnet":
        pairs = draw_pairs(pairs, HSNET_DRAWS, seed)
    images = sorted({image for image, _ in pairs}) if scope == "fold" else [item.id for item in data.items]
    return Plan(
        protocol=protocol,
        images=tuple(images),
        pairs=tuple(pairs),
        groups={"unseen": unseen, "seen": seen},
        absent=ABSENT_PROMPTS,
        asked=unseen,
        seed=seed,
    ), missing


def pairs_plan(data: SegmentationData) -> Plan:
    """FSS-1000: every image once, prompted with its class. Its masks say nothing of other classes."""
    pairs = tuple((item.id, item.class_id) for item in data.items if item.class_id is not None)
    return Plan(protocol="full", images=tuple(item.id for item in data.items), pairs=pairs, asked=data.class_ids)


def mosaic_plan(data: SegmentationData) -> Plan:
    """Mosaic-4: an image's four names together, the likeliest wins, background competes; beside it each name alone.

    No absent prompts: the masks of FSS-1000 mark one class each and say nothing of the others.
    """
    mosaics = [item for item in data.items if isinstance(item, Mosaic)]
    pairs = tuple((item.id, tile.class_id) for item in mosaics for tile in item.tiles if tile.class_id is not None)
    images = tuple(item.id for item in mosaics)
    return Plan("mosaic4", images, pairs, groups={"all": data.class_ids}, listed_only=True, asked=data.class_ids)


def argmax_plan(data: SegmentationData, seed: int = 0) -> Plan:
    """Benchmarks and own folders: all classes of the set together on every image; its background competes, if any."""
    background = not data.ignore_unlabeled
    return Plan(
        protocol="argmax",
        images=tuple(item.id for item in data.items),
        groups={"all": data.class_ids},
        # Where 0 means "nobody looked", an unmarked class may well be in the picture.
        absent=ABSENT_PROMPTS if background else 0,
        asked=data.class_ids,
        background=background,
        others=data.background_prompts,
        background_counts=data.include_background,
        seed=seed,
    )


def limited(plan: Plan, images: int) -> Plan:
    """The same plan on at most so many images, spread evenly over the list."""
    if images < 1:
        raise FusionerError(f"the limit must be at least one image, not {images}")
    if images >= len(plan.images):
        return plan
    kept = [plan.images[i] for i in np.linspace(0, len(plan.images) - 1, images).round().astype(int)]
    chosen = set(kept)
    return replace(plan, images=tuple(kept), pairs=tuple(pair for pair in plan.pairs if pair[0] in chosen))


def draw_pairs(pairs: Sequence[Pair], draws: int, seed: int) -> list[Pair]:
    """A class with equal chance, then one of its pairs with equal chance, `draws` times."""
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_class.setdefault(pair[1], []).append(pair)
    classes = sorted(by_class)
    drawn = (by_class[classes[rng.integers(len(classes))]] for _ in range(draws))
    return [own[rng.integers(len(own))] for own in drawn]
