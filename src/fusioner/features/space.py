"""What entries of the cache have in common: everything that decides the tokens but the image and the view."""

import hashlib
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError

Dtype = Literal["fp16", "int8"]

# Raise the number where the pixels an encoder is shown change: entries made the old way are then never served.
PREPROCESSING = "upright rgb8, squashed bilinear antialias, 1"
VIEWS = "flip, crop 0.45, jitter 0.3, seeded by the image's sha256, 1"


@dataclass(frozen=True)
class Space:
    """One way to turn images into stored tokens.

    Attributes:
        encoder: name that builds the encoder again; for people and for repairs, no part of the key.
        fingerprint: sha256 of its weights and normalisation.
        resolution: side in pixels of the squashed image.
        dim, grid: token width, and rows and columns of tokens.
        dtype: fp16, or int8 with a scale per token.
        preprocessing, views: the recipes above.
    """

    encoder: str
    fingerprint: str
    resolution: int
    dim: int
    grid: tuple[int, int]
    dtype: Dtype = "fp16"
    preprocessing: str = PREPROCESSING
    views: str = VIEWS

    @classmethod
    def of(cls, encoder: ImageEncoder, resolution: int, dtype: Dtype = "fp16") -> Self:
        """The space of an encoder's tokens at a resolution; FusionerError when not even one token fits in."""
        side = resolution // encoder.stride
        if side < 1:
            raise FusionerError(
                f"a token of {encoder.name} is {encoder.stride} px wide: {resolution} px are too few, take 224 or more"
            )
        return cls(encoder.name, encoder.fingerprint(), resolution, encoder.dim, (side, side), dtype)

    @property
    def key(self) -> str:
        """Name of the space's folder: a hash of everything but the encoder's name."""
        content = asdict(self)
        del content["encoder"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def entry_bytes(self) -> int:
        """Bytes of one stored view."""
        tokens = math.prod(self.grid)
        return tokens * self.dim * 2 if self.dtype == "fp16" else tokens * (self.dim + 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; TypeError or KeyError for anything else."""
        height, width = content["grid"]
        return cls(**{**content, "grid": (height, width)})


def default_folder() -> Path:
    """Where features are kept when nobody says: `$FUSIONER_CACHE`, else the platform's folder for caches."""
    if named := os.environ.get("FUSIONER_CACHE"):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fusioner" / "features"
