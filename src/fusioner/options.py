"""How an image is segmented: the options that prediction, batches, the server and evaluation share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal, get_args

from fusioner.errors import FusionerError

MAX_LONG_SIDE = 2048  # px, of an image resized to a short side
Mode = Literal["auto", "whole", "multicrop", "slide"]


@dataclass(frozen=True)
class InferenceOptions:
    """How an image is segmented.

    Raises FusionerError for an unknown mode, a scale outside (0, 16], a threshold outside [0, 1], overlap without
    background, or an option that does not apply to the mode.

    Attributes:
        mode: whole: encode the whole image at once, resized to the training size; multicrop: also four overlapping
            crops of the image at 1.5 times that size, logits averaged (5 times slower, better on small objects);
            slide: slide windows over the full-resolution image; auto: multicrop for the bundled model
            and others with a classifier's posterior, slide for encoders without training, else whole.
        tta_scales: Sizes of the resized image, as multiples of the training size; their logits are averaged (not
            in mode slide). 1,1.33 takes about three times as long.
        guided_filter: Align mask edges with image edges by a guided filter (not in mode slide). Default: as the model's
            card says.
        short_side: Shorter side of the resized image, px (aspect ratio kept, longer side at most 2048). Default: of
            pairs of encoders without training, as published; of trained models, a square (whole) or the image's own
            size (slide).
        window: Side of a window, px (mode slide). Default: the training size, or as published.
        stride: Step between windows, px (mode slide). Default: 2/3 of the window, or as published.
        threshold: Minimum probability of a labelled pixel, 0 to 1. Default: the model's own.
        background: Leave pixels without a label where no label reaches the threshold; off: label every pixel.
        overlap: Give every label a mask of its own: all pixels at which its probability exceeds the threshold, also
            where another label is likelier.
        instances: List the connected regions of a label as separate objects in json, coco, labelme, yolo, cvat, geojson
            and tables. They are not counted individuals: objects that touch are one region.
    """

    mode: Mode = "auto"
    tta_scales: tuple[float, ...] = (1.0,)
    guided_filter: bool | None = None
    short_side: int | None = None
    window: int | None = None
    stride: int | None = None
    threshold: float | None = None
    background: bool = True
    overlap: bool = False
    instances: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise FusionerError(f"the mode must be one of {', '.join(get_args(Mode))}, not {self.mode!r}")
        object.__setattr__(self, "tta_scales", check_scales(self.tta_scales))
        for name in ("short_side", "window", "stride"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_LONG_SIDE:
                raise FusionerError(f"{name} must be 1 to {MAX_LONG_SIDE} pixels, not {value}")
        if self.threshold is not None:
            check_threshold(self.threshold)
        if self.overlap and not self.background:
            raise FusionerError(
                "overlapping masks are those above the threshold: do not combine overlap and no background"
            )
        if self.mode == "slide" and (self.guided_filter or self.tta_scales != (1.0,)):
            raise FusionerError("tta-scales and guided-filter do not apply to mode slide: omit them")
        if self.mode in ("whole", "multicrop") and (self.window or self.stride):
            raise FusionerError(f"window and stride apply to mode slide, not to mode {self.mode}: add --mode slide")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values."""
        return asdict(self) | {"tta_scales": list(self.tta_scales)}


def check_threshold(threshold: float) -> float:
    """Return the threshold; raise FusionerError unless it lies in [0, 1]."""
    if not isinstance(threshold, Real) or not 0 <= threshold <= 1:  # also false for NaN
        raise FusionerError(f"the threshold must be a probability between 0 and 1, not {threshold!r}")
    return float(threshold)


def check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """Return the scales as a tuple; raise FusionerError unless there is one and each lies in (0, 16]."""
    if not scales or not all(0 < scale <= 16 for scale in scales):  # also false for NaN
        raise FusionerError(
            f"scales must be above 0 and at most 16, not {', '.join(map(str, scales)) or 'an empty list'}"
        )
    return tuple(scales)


def check_model_or_pair(
    model: object, image_encoder: str | None, text_encoder: str | None, background: Sequence[str] | None
) -> None:
    """Raise a FusionerError for a model together with a pair of encoders, or a part of a pair."""
    if model is not None and image_encoder is not None:
        raise FusionerError("a model names its own encoders: give either a model or an image encoder")
    if image_encoder is None and not (text_encoder is None and background is None):
        raise FusionerError(
            "text encoder and background names belong to a pair without training: name its image encoder"
        )


DEFAULT_OPTIONS = InferenceOptions()
ENCODING_OPTIONS = ("mode", "tta_scales", "guided_filter", "short_side", "window", "stride")
"""Options that an encoded image depends on; the others are options of the decision."""
