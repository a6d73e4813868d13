"""The result of segmenting one image.

Letters: K labels, h w pixels, gh gw the network's resolution.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, UInt8, UInt16
from numpy.typing import DTypeLike
from PIL import Image

from fusioner.errors import FusionerError
from fusioner.formats import default_formats, found_segments, get_format, split_formats
from fusioner.io import atomic_write, check_replaceable
from fusioner.labels import label_warnings
from fusioner.options import InferenceOptions
from fusioner.polygons import Polygon
from fusioner.postprocess import decide_bands, decide_logits, find_outscoring, iter_masks, iter_probabilities, sigmoid
from fusioner.regions import (
    Region,
    RunLengths,
    count_pixels,
    decode_mask,
    encode_mask,
    find_regions,
    stack_masks,
    trace_box,
)
from fusioner.visualization import overlay as draw_overlay


@dataclass(eq=False)
class Segmentation:
    """The label map of an image, with scores and logits.

    Attributes:
        image: upright RGB.
        labels: the labels; the i-th (from 1) is `i` in `label_map`.
        label_map: for every pixel the number of its label; 0 is background. With the option overlap: of the label whose
            mask is the smallest there.
        scores: label -> mean probability over its pixels; 0.0 if it has none.
        name: the image's file name, if it came from a file.
        logits: at the network's resolution. Full-resolution probabilities are computed from them on access, a few
            labels at a time, because all of them may not fit into memory. None in results of `fusioner.Client`.
        options: how the image was segmented, with the threshold that was used.
        model: identity of the model, see `Segmenter.model_id`; empty if the logits came from elsewhere.
        peaks: label -> its highest probability in the image, at the network's resolution.
        outscored: label without pixels although its probability exceeds the threshold somewhere -> the label that is
            likelier in most of these places.
        run_lengths: with the option overlap: label -> its mask, as COCO's compressed run lengths.
        regions: with the option instances: the connected regions of all labels, in the order of the labels, the largest
            of each first.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: tuple[str, ...]
    label_map: UInt16[np.ndarray, "h w"]
    scores: dict[str, float]
    name: str
    logits: Float[np.ndarray, "k gh gw"] | None = field(repr=False)
    options: InferenceOptions
    model: dict[str, str] = field(default_factory=dict, repr=False)
    peaks: dict[str, float] = field(default_factory=dict)
    outscored: dict[str, str] = field(default_factory=dict)
    run_lengths: dict[str, RunLengths] = field(default_factory=dict, repr=False)
    regions: list[Region] = field(default_factory=list, repr=False)

    @classmethod
    def from_logits(
        cls,
        image: UInt8[np.ndarray, "h w 3"],
        labels: Sequence[str],
        logits: Float[np.ndarray, "k gh gw"],
        options: InferenceOptions | None = None,
        *,
        name: str = "image",
        model: dict[str, str] | None = None,
    ) -> "Segmentation":
        """Decide the pixels of `image` from logits of any resolution; the default threshold is 0.5."""
        logits, options = np.asarray(logits), options or InferenceOptions()
        threshold = 0.5 if options.threshold is None else options.threshold
        options = replace(options, threshold=threshold, guided_filter=bool(options.guided_filter))
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels for {len(logits)} planes of logits")
        size, run_lengths, scores, sums = image.shape[:2], {}, {}, np.zeros(len(labels) + 1)
        if options.overlap:
            masks = ((encode_mask(mask), score) for mask, score in iter_masks(logits, size, threshold))
            encoded, means = zip(*masks, strict=True)
            run_lengths, scores = (dict(zip(labels, values, strict=True)) for values in (encoded, means))
            label_map = stack_masks(list(encoded), size)
        else:
            label_map = np.empty(size, np.uint16)
            for rows, numbers, best in decide_bands(logits, size, threshold, options.background):
                label_map[rows] = numbers
                sums += np.bincount(numbers.ravel(), best.ravel(), len(sums))
        peaks = sigmoid(logits.reshape(len(logits), -1).max(axis=1)).tolist()
        result = cls(
            image=image,
            labels=tuple(labels),
            label_map=label_map,
            scores=scores,
            name=name,
            logits=logits,
            options=options,
            model=model or {},
            peaks=dict(zip(labels, peaks, strict=True)),
            run_lengths=run_lengths,
        )
        if not options.overlap:
            totals = zip(labels, sums[1:].tolist(), strict=True)
            result.scores = {label: total / max(1, result.areas[label]) for label, total in totals}
        missing = [number for number, label in enumerate(labels) if not result.areas[label]]
        pairs = find_outscoring(logits, missing, threshold)
        result.outscored = {labels[missed]: labels[winner] for missed, winner in pairs}
        if options.instances:
            for label in (label for label in labels if result.areas[label]):
                mask, probability = result.mask(label), result.probability(label)
                result.regions += find_regions(label, mask, probability, result.boxes[label])
        return result

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.label_map, dtype, copy=copy)

    def _repr_png_(self) -> bytes:
        """Return the overlay for notebooks, at most 1024 x 1024 pixels."""
        picture, stream = self.overlay(), BytesIO()
        picture.thumbnail((1024, 1024))
        picture.save(stream, "PNG")
        return stream.getvalue()

    def __repr__(self) -> str:
        found = ", ".join(f"{label} {share:.1%}" for label, share in self.found.items()) or "nothing found"
        return f"<Segmentation of {self.name}, {self.width} x {self.height}: {found}>"

    @property
    def width(self) -> int:
        return self.image.shape[1]

    @property
    def height(self) -> int:
        return self.image.shape[0]

    @cached_property
    def areas(self) -> dict[str, int]:
        """Number of pixels of each label."""
        if self.options.overlap:
            return {label: count_pixels(mask) for label, mask in self.run_lengths.items()}
        counts = np.bincount(self.label_map.ravel(), minlength=len(self.labels) + 1)[1:]
        return dict(zip(self.labels, counts.tolist(), strict=True))

    @property
    def coverage(self) -> dict[str, float]:
        """Fraction of the image that each label covers, 0..1."""
        return {label: area / self.label_map.size for label, area in self.areas.items()}

    @property
    def found(self) -> dict[str, float]:
        """Coverage of the labels that have pixels, largest first."""
        present = {label: share for label, share in self.coverage.items() if share}
        return dict(sorted(present.items(), key=lambda item: -item[1]))

    @cached_property
    def boxes(self) -> dict[str, tuple[int, int, int, int]]:
        """Bounding box (x, y, width, height) of each label in pixels; zeros if it has no pixels."""
        boxes: dict[str, tuple[int, int, int, int]] = dict.fromkeys(self.labels, (0, 0, 0, 0))
        for label in self.found:
            mask = self.mask(label)
            x, y = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
            boxes[label] = (int(x[0]), int(y[0]), int(x[-1] - x[0]) + 1, int(y[-1] - y[0]) + 1)
        return boxes

    def number(self, label: str) -> int:
        """Return the number of `label` in the map, 1..K; FusionerError if it is not one of the labels."""
        if label not in self.labels:
            raise FusionerError(f"'{label}' is not among the labels: {', '.join(self.labels)}")
        return self.labels.index(label) + 1

    def mask(self, label: str) -> Bool[np.ndarray, "h w"]:
        """Return the mask of `label`; FusionerError if it is not one of the labels."""
        number = self.number(label)
        return decode_mask(self.run_lengths[label]) if self.options.overlap else self.label_map == number

    def polygons(self, label: str) -> list[Polygon]:
        """Return the outlines of the label's regions along pixel edges with their holes, see `fusioner.polygons`."""
        return trace_box(self.mask(label), self.boxes[label])

    def cutout(self, label: str, *, soft: bool = False, crop: bool = True) -> Image.Image:
        """Return the label's pixels as RGBA.

        Args:
            label: one of `labels`.
            soft: use the label's probability as alpha instead of its mask.
            crop: crop to the label's box instead of keeping the image's size.

        Raises:
            FusionerError: the label is unknown or has no pixels.
        """
        alpha = self.probability(label) if soft else self.mask(label)
        x, y, width, height = self.boxes[label]
        if not width:
            raise FusionerError(f"there is no '{label}' in {self.name} to cut out: lower the threshold")
        rgba = np.dstack([self.image, (alpha * np.float32(255) + 0.5).astype(np.uint8)])
        return Image.fromarray(rgba[y : y + height, x : x + width] if crop else rgba)

    def probability(self, label: str) -> Float16[np.ndarray, "h w"]:
        """Return the probability of `label` at every pixel; FusionerError if it is not one of the labels."""
        number = self.number(label)
        plane = next(self.iter_probabilities(slice(number - 1, number)))[0]
        return plane.astype(np.float16)

    @cached_property
    def confidence(self) -> Float16[np.ndarray, "h w"]:
        """Confidence of the decision at every pixel: the largest probability, or 1 - the largest one for background."""
        _, best = decide_logits(self._require_logits(), self.image.shape[:2], background=False)
        return np.where(self.label_map, best, 1 - best).astype(np.float16)

    @property
    def probabilities(self) -> Float16[np.ndarray, "k h w"]:
        """Probabilities of all labels at full resolution, recomputed on each access: 2 bytes per label and pixel."""
        result = np.empty((len(self.labels), *self.image.shape[:2]), np.float16)
        start = 0
        for chunk in self.iter_probabilities():
            result[start : start + len(chunk)] = chunk.astype(np.float16)
            start += len(chunk)
        return result

    def iter_probabilities(self, labels: slice = slice(None)) -> Iterator[Float[np.ndarray, "n h w"]]:
        """Yield the probabilities at full resolution, a few labels at a time."""
        return iter_probabilities(self._require_logits()[labels], self.image.shape[:2])

    def _require_logits(self) -> Float[np.ndarray, "k gh gw"]:
        if self.logits is None:
            raise FusionerError("a result of fusioner.Client has no probabilities: export the format npz")
        return self.logits

    def to_transformers(self) -> list[dict[str, Any]]:
        """Return the output of transformers' image-segmentation pipeline, the largest label first.

        Each label found, or with the option instances each region, is {"score": 0..1, "label": str, "mask": a Pillow
        image of mode L, 255 inside and 0 outside}.
        """
        masks = [(segment, segment.mask.view(np.uint8) * np.uint8(255)) for segment in found_segments(self)]
        return [{"score": one.score, "label": one.label, "mask": Image.fromarray(mask)} for one, mask in masks]

    def to_supervision(self) -> Any:
        """Return the labels found as `supervision.Detections`, largest first; needs the package supervision.

        With the option instances each region is a detection. `class_id` i is the i-th of `labels` (from 0),
        `confidence` the score, and `data["class_name"]` the label.
        """
        import supervision  # pyright: ignore[reportMissingImports]

        found = found_segments(self)
        boxes = np.array([segment.box for segment in found], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return supervision.Detections(
            xyxy=boxes,
            mask=np.array([segment.mask for segment in found], bool).reshape(-1, self.height, self.width),
            confidence=np.array([segment.score for segment in found], np.float32),
            class_id=np.array([segment.id - 1 for segment in found], int),
            data={"class_name": np.array([segment.label for segment in found], str)},
        )

    def overlay(self, *, opacity: float = 0.45, legend: bool = True) -> Image.Image:
        """Draw the masks in colour over the image, and a legend of names and coverage below it."""
        return draw_overlay(self.image, self.layers, self.labels, opacity=opacity, legend=legend)

    @property
    def layers(self) -> list[UInt16[np.ndarray, "h w"]]:
        """Label maps to draw one over the other: one, or with the option overlap one per label, the largest first."""
        if not self.options.overlap:
            return [self.label_map]
        return [self.mask(label) * np.uint16(self.number(label)) for label in self.found] or [self.label_map]

    @property
    def notes(self) -> list[str]:
        """Warnings about labels that the model cannot be expected to find, see `label_warnings`."""
        return label_warnings(self.labels, [label for label in self.labels if label not in self.found])

    def save(
        self, folder: str | Path, stem: str | None = None, formats: Sequence[str] | str | None = None
    ) -> dict[str, Path]:
        """Write `<stem><suffix>` in each of the `formats` (keys of `fusioner.formats.FORMATS`); return their paths.

        A single string names formats separated by commas.
        The default writes `<stem>.overlay.png`, `<stem>.png` (indexed mask; with the option overlap `<stem>.masks.zip`)
        and `<stem>.json`, where the stem is that of the image's file name. Earlier results are replaced; if one file
        cannot be written, none is.

        Raises:
            FusionerError: the folder cannot be written to, another program's file is there, `stem` is no file name, a
                format is unknown, or it cannot hold overlapping masks.
        """
        if stem is None:
            stem = Path(self.name).stem or "image"
        formats = default_formats(self.options) if formats is None else formats
        if not stem.strip(".") or Path(stem).name != stem:
            raise FusionerError(f"'{stem}' is no file name: give one without folders")
        names = split_formats(formats) if isinstance(formats, str) else formats
        writers = {name: get_format(name, self.options) for name in names}
        paths = {name: Path(folder) / f"{stem}{writer.suffix}" for name, writer in writers.items()}
        with ExitStack() as stack:  # all files are renamed into place after the last one is written
            for name, path in paths.items():
                check_replaceable(path, writers[name].mark)
                with stack.enter_context(atomic_write(path)).open("wb") as file:
                    writers[name].write(self, file)
        return paths

    def to_bytes(self, format: str) -> bytes:
        """Return the content of the file that `save` writes; FusionerError as there."""
        stream = BytesIO()
        get_format(format, self.options).write(self, stream)
        return stream.getvalue()
