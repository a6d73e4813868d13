"""The answer: which pixel shows what, and how surely."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float16, UInt8, UInt16
from PIL import Image
from torch import Tensor

from fusioner.errors import FusionerError
from fusioner.inference.decide import chunks, decide_logits


@dataclass(eq=False)
class Segmentation:
    """One image, its labels, and the map of them.

    Attributes:
        image: the photograph, upright RGB.
        labels: what was asked for; the i-th (from 1) is `i` in `label_map`.
        label_map: for every pixel the number of its label; 0 is background.
        scores: label -> mean probability over the pixels it got; 0.0 where it got none.
        threshold, background: how it was decided; without background every pixel has a label.
        name: the image's file name, where it came from a file.
        logits: the model's answer at its own resolution. Probabilities at full resolution are made from it when asked
            for, a label at a time: all of 500 labels on a large photograph would fill the memory.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: tuple[str, ...]
    label_map: UInt16[np.ndarray, "h w"]
    scores: dict[str, float]
    threshold: float
    background: bool
    name: str
    logits: Float[Tensor, "k gh gw"] = field(repr=False)

    @classmethod
    def from_logits(
        cls,
        image: UInt8[np.ndarray, "h w 3"],
        labels: Sequence[str],
        logits: Float[Tensor, "k gh gw"],
        *,
        threshold: float = 0.5,
        background: bool = True,
        name: str = "image",
    ) -> "Segmentation":
        """Decide every pixel of `image` from logits of any resolution, one plane a label, on any device.

        Raises:
            FusionerError: the threshold is outside [0, 1].
        """
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels for {len(logits)} planes of logits")
        numbers, best = (part.cpu().numpy() for part in decide_logits(logits, image.shape[:2], threshold, background))
        pixels = np.bincount(numbers.ravel(), minlength=len(labels) + 1)
        means = (np.bincount(numbers.ravel(), best.ravel(), len(labels) + 1) / np.maximum(pixels, 1)).tolist()[1:]
        return cls(
            image=image,
            labels=tuple(labels),
            label_map=numbers.astype(np.uint16),
            scores=dict(zip(labels, means, strict=True)),
            threshold=float(threshold),
            background=background,
            name=name,
            logits=logits.cpu(),
        )

    def __repr__(self) -> str:
        found = ", ".join(f"{label} {share:.1%}" for label, share in self.found.items()) or "nothing found"
        return f"<Segmentation of {self.name}, {self.width} x {self.height}: {found}>"

    @property
    def width(self) -> int:
        """Of the image, px."""
        return self.image.shape[1]

    @property
    def height(self) -> int:
        """Of the image, px."""
        return self.image.shape[0]

    @cached_property
    def pixels(self) -> dict[str, int]:
        """Label -> number of its pixels."""
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.labels) + 1)[1:]
        return dict(zip(self.labels, counts.tolist(), strict=True))

    @property
    def coverage(self) -> dict[str, float]:
        """Label -> its share of the image, 0..1."""
        return {label: count / self.label_map.size for label, count in self.pixels.items()}

    @property
    def found(self) -> dict[str, float]:
        """Coverage of the labels that have a pixel, largest first."""
        present = {label: share for label, share in self.coverage.items() if share}
        return dict(sorted(present.items(), key=lambda item: -item[1]))

    def number(self, label: str) -> int:
        """What stands for `label` in the map, 1..K; FusionerError when it was not asked for."""
        if label not in self.labels:
            raise FusionerError(f"'{label}' is not among the labels: {', '.join(self.labels)}")
        return self.labels.index(label) + 1

    def mask(self, label: str) -> Bool[np.ndarray, "h w"]:
        """Where `label` is; FusionerError when it was not asked for."""
        return self.label_map == self.number(label)

    def probability(self, label: str) -> Float16[np.ndarray, "h w"]:
        """How surely every pixel shows `label`, 0..1; FusionerError when it was not asked for."""
        number = self.number(label)
        return next(chunks(self.logits[number - 1 : number], self.image.shape[:2]))[0].half().numpy()

    @property
    def probabilities(self) -> Float16[np.ndarray, "k h w"]:
        """All labels at full resolution: 2 bytes a label and pixel, made anew at each use."""
        full = np.empty((len(self.labels), *self.image.shape[:2]), np.float16)
        start = 0
        for some in chunks(self.logits, self.image.shape[:2]):
            full[start : start + len(some)] = some.half().numpy()
            start += len(some)
        return full

    def overlay(self, *, opacity: float = 0.45, legend: bool = True) -> Image.Image:
        """The photograph under translucent colours with outlines, and below it a legend of names and coverage."""
        from fusioner.inference.render import overlay

        return overlay(self, opacity=opacity, legend=legend)

    def save(self, folder: str | Path, stem: str = "image") -> dict[str, Path]:
        """Write `<stem>.overlay.png`, `<stem>.png` (indexed mask) and `<stem>.json` -> their paths by kind.

        All three or, when one cannot be written, none; files of those names are replaced.

        Raises:
            FusionerError: the folder cannot be written to, or `stem` is no file name.
        """
        from fusioner.inference.formats import save

        return save(self, folder, stem)
