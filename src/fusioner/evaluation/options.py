"""Options of an evaluation; a light module, imported by the command line at start-up."""

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

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
