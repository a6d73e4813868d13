"""What an evaluation asks (Plan) and what it saw (Evidence): pixel counts per image, nothing divided yet.

Counts are kept per image, so that every figure and its bootstrap interval are sums over resampled rows.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Integer

from fusioner.data.base import Pair
from fusioner.encoders.prompt_templates import NEUTRAL

IGNORED = 65535
"""In an example's truth: pixels that count nowhere."""


@dataclass(frozen=True)
class Plan:
    """What to ask about which image.

    Attributes:
        protocol: its name in reports.
        images: every image to visit, by id.
        pairs: (image, class) prompts decided one at a time; a pair drawn twice is listed twice.
        groups: classes prompted together, by name; the argmax decides. The figures of a group called "all" are the
            protocol's own.
        listed_only: prompt each image with those classes of a group only that `pairs` lists for it.
        absent: up to this many classes of `asked` that are not in an image are prompted there, one at a time.
        asked: the classes the pairs and the absent prompts come from.
        blind: the text prompted instead of every pair's class name; None leaves the measure out.
        background: whether a pixel may belong to no class of a group.
        others: words prompted beside a group; the pixels they win are background, and none are below the threshold.
        background_counts: the protocol's mIoU averages background too.
        threshold: probability above which a pixel is taken.
        squash: score at this side in pixels (masks resized by nearest) instead of at each mask's own size.
        seed: of the choice of absent classes.
    """

    protocol: str
    images: tuple[str, ...]
    pairs: tuple[Pair, ...] = ()
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    listed_only: bool = False
    absent: int = 0
    asked: tuple[int, ...] = ()
    blind: str | None = NEUTRAL
    background: bool = True
    others: tuple[str, ...] = ()
    background_counts: bool = False
    threshold: float = 0.5
    squash: int | None = None
    seed: int = 0


@dataclass
class Rows:
    """Columns of a table, a row per answer.

    Attributes:
        image: index into the images visited; class_id: the class prompted.
        values: pixel counts or shares; what they mean is the table's affair.
    """

    image: Int[np.ndarray, "n"]
    class_id: Int[np.ndarray, "n"]
    values: Float[np.ndarray, "n v"]


@dataclass
class Group:
    """Argmax results of classes prompted together.

    Attributes:
        class_ids: (K,) in the order prompted; id 0 of the tables is background.
        counts: per image: pixels right, pixels of the truth, pixels predicted, each by class.
        confusion: summed over images, (true, predicted).
    """

    class_ids: tuple[int, ...]
    counts: Int[np.ndarray, "n 3 c"]
    confusion: Int[np.ndarray, "c c"]


@dataclass(frozen=True, order=True)
class Example:
    """One answer worth looking at.

    Attributes:
        score: IoU in [0, 1]; image: its id; labels: classes shown, label_map value i (from 1) is labels[i - 1].
    """

    score: float
    image: str
    labels: tuple[int, ...]
    prediction: Integer[np.ndarray, "h w"] = field(compare=False)
    truth: Integer[np.ndarray, "h w"] = field(compare=False)


@dataclass
class Evidence:
    """Everything an evaluation saw.

    Attributes:
        pairs, blind: values (background intersection, background union, foreground intersection, foreground union),
            once per time a pair is listed.
        absent: values (share of the image claimed, 1.0 where not a single pixel was).
        groups: by the plan's names.
        best, worst: examples, best first and worst first.
    """

    plan: Plan
    pairs: Rows
    blind: Rows
    absent: Rows
    groups: dict[str, Group]
    best: list[Example]
    worst: list[Example]
