"""What a run of `fusioner predict` asks, and the pictures on their way through it."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from fusioner.base_segmenter import BaseSegmenter, Resolution
from fusioner.cli.inputs import STDIN, Job
from fusioner.errors import FusionerError
from fusioner.image import ImageSource, read_image
from fusioner.visualization import format_coverage

if TYPE_CHECKING:
    from PIL import Image

    from fusioner.segmentation import Segmentation


@dataclass(frozen=True)
class Asked:
    """What is asked of every picture, and which `kinds` of `inference.formats` are kept of the answer."""

    labels: list[str]
    threshold: float | None
    background: bool
    resolution: Resolution
    kinds: tuple[str, ...]

    @property
    def frame_kinds(self) -> tuple[str, ...]:
        """Those kept of every frame of a video: its overlay is a video itself."""
        return tuple(kind for kind in self.kinds if kind != "overlay")

    def told(self, segmenter: BaseSegmenter) -> dict[str, Any]:
        """How the JSON of a result tells of it."""
        threshold = segmenter.card.threshold if self.threshold is None else self.threshold
        told: dict[str, Any] = {"labels": self.labels, "threshold": threshold, "background": self.background}
        return told | segmenter.looks(self.resolution).told()

    def of(
        self, image: ImageSource, segmenter: BaseSegmenter, on_progress: Callable[[int, int], None] | None = None
    ) -> "Segmentation":
        """The answer; arguments and errors as in calling the segmenter."""
        return segmenter(
            image,
            self.labels,
            threshold=self.threshold,
            background=self.background,
            resolution=self.resolution,
            on_progress=on_progress,
        )


@dataclass(eq=False)
class Piece:
    """A picture, or frame `index` of a video, on its way through the run; `number` is its place in it."""

    number: int
    job: Job
    source: ImageSource
    index: int | None = None
    time: float = 0.0
    result: "Segmentation | None" = None
    told: str = ""
    thumbnail: "Image.Image | None" = None
    drawn: "Image.Image | None" = None
    error: FusionerError | None = None

    @property
    def stem(self) -> str:
        """Of the result files."""
        return self.job.stem + ("" if self.index is None else f"-{self.index:06}")

    def named(self, path: str | Path) -> str:
        """A name of the input, with the frame's number."""
        return str(path) + ("" if self.index is None else f" frame {self.index}")


def source(path: Path) -> ImageSource:
    """What `read` wants of an input: its path, or all that the standard input holds."""
    return sys.stdin.buffer.read() if path == STDIN else path


def read(picture: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    """Upright RGB; errors as of `read_image`, bytes being those of the standard input."""
    return read_image(picture, "standard input" if isinstance(picture, bytes) else None)


def found_text(result: "Segmentation", most: int = 8) -> str:
    """`cat 61.4 %, sofa 2.8 %; not found: dog`, the largest first and no more than `most` of each."""
    found = [f"{label} {format_coverage(share)}" for label, share in result.found.items()]
    missing = [label for label in result.labels if label not in result.found]
    text = _some(found, most) or "nothing found"
    return f"{text}; not found: {_some(missing, most)}" if found and missing else text


def _some(names: Sequence[str], most: int) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
