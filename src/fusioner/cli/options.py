"""Options that several commands share, as command-line flags."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from cyclopts import Group, Parameter, Token, validators

from fusioner.data.registry import DatasetName
from fusioner.encoders.prompt_templates import read_templates
from fusioner.encoders.training_free import resolve_pair
from fusioner.errors import FusionerError
from fusioner.export import Runtime
from fusioner.labels import check_labels, parse_labels, read_labels
from fusioner.options import InferenceOptions, Mode, check_model_or_pair, check_scales

INFERENCE, MODEL, COMPUTE = Group("Inference", sort_key=1), Group("Model", sort_key=2), Group("Computation", sort_key=3)
"""Groups of flags in the help of a command, after its own."""


def parse_scales(_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Parse `0.75,1,1.25`; raise FusionerError unless all are numbers in (0, 16]."""
    text = tokens[0].value
    try:
        return check_scales([float(part) for part in text.split(",")])
    except ValueError as error:
        raise FusionerError(f"--tta-scales {text}: write comma-separated numbers, as in 0.75,1,1.25") from error


def _show_scales(scales: tuple[float, ...]) -> str:
    return ",".join(f"{scale:g}" for scale in scales)


TtaScales: TypeAlias = Annotated[
    tuple[float, ...], Parameter(converter=parse_scales, n_tokens=1, negative="", show_default=_show_scales)
]


@Parameter(name="*", group=INFERENCE)
@dataclass(frozen=True)
class InferenceFlags(InferenceOptions):  # noqa: D101
    __doc__ = InferenceOptions.__doc__  # shown by --help

    tta_scales: TtaScales = (1.0,)


@Parameter(name="*", group=INFERENCE)
@dataclass(frozen=True)
class FastInferenceFlags(InferenceFlags):  # noqa: D101
    __doc__ = InferenceOptions.__doc__

    mode: Mode = "whole"  # of commands where time per image matters most: batch, serve


_LABELS_HELP = "Labels: names separated by commas, or a .txt file (UTF-8) with one label per line; may be repeated."
_RUNTIME_HELP = "torch; for bundled and exported models also onnx (ONNX Runtime) and openvino. auto: the fastest."
_CACHE_HELP = "Cache folder; default: $FUSIONER_CACHE, or the platform's folder for caches."
_VALUES_HELP = "Mask values to read as others, such as 255=1 (masks of 0 and 255) or 7=ignore."
Positive: TypeAlias = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Labels: TypeAlias = Annotated[tuple[str, ...], Parameter(negative="", help=_LABELS_HELP)]
Device: TypeAlias = Annotated[str, Parameter(group=COMPUTE, help="auto, cpu, cuda, cuda:N or mps.")]
RuntimeName: TypeAlias = Annotated[Runtime, Parameter(group=COMPUTE, help=_RUNTIME_HELP)]
Dataset: TypeAlias = Annotated[DatasetName, Parameter(help="Data set; docs/data.md describes the folder of each.")]
Root: TypeAlias = Annotated[Path, Parameter(help="Folder of the data set.")]
MaskValues: TypeAlias = Annotated[str, Parameter(help=_VALUES_HELP)]
CacheFolder: TypeAlias = Annotated[Path | None, Parameter(help=_CACHE_HELP)]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelFlags:
    """Flags that choose the model: a trained one, or a pair of encoders without training.

    Attributes:
        model: Model file of `fusioner train`, or folder of `save_pretrained` or `fusioner export`. Default: bundled
            model.
        image_encoder: Segment without a trained model: a text-aligned image encoder such as naclip-vit-b16, or A+B,
            where B gives the attention (ProxyCLIP), such as clip-vit-b16+dinov2-b. See docs/training-free.md. Default:
            none, --model.
        text_encoder: Text encoder of --image-encoder. Default: that of the same model.
        background_names: Names that compete with the labels of --image-encoder and whose pixels get none, separated by
            commas or in a .txt file; "" for none. Default: 26 words, such as sky, wall and floor.
        templates: File of prompt templates, one per line, each with {} for the label; imagenet: CLIP's 80. Default:
            those of the model; without training, imagenet.
    """

    model: Path | None = None
    image_encoder: str | None = None
    text_encoder: str | None = None
    background_names: str | None = None
    templates: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `fusioner.load`, with full names; FusionerError for names that are no pair."""
        listed = self.background_names
        background = None if listed is None else tuple(read_label_flags([listed])) if listed.strip() else ()
        image, text = self.image_encoder, self.text_encoder
        check_model_or_pair(self.model, image, text, background)
        if image is not None:
            image, text = resolve_pair(image, text)
        return {
            "model": self.model,
            "image_encoder": image,
            "text_encoder": text,
            "background": background,
            "templates": read_templates(self.templates) if self.templates else None,
        }


def read_label_flags(values: Sequence[str]) -> list[str]:
    """Return the labels of all `--labels` values; FusionerError as `check_labels` and `read_labels` raise it."""
    return check_labels([label for value in values for label in _read_label_flag(value)])


def _read_label_flag(value: str) -> list[str]:
    suffix = Path(value).suffix.lower()
    if suffix == ".txt":
        return read_labels(value)
    if suffix and os.path.isfile(value):
        raise FusionerError(f"labels are read from .txt files, one per line: save those of {value} as one")
    return parse_labels(value)


def print_notes(notes: Sequence[str]) -> None:
    """Print notes on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)


def print_error(error: FusionerError) -> None:
    """Print an error after which the command goes on."""
    print(f"error: {error}", file=sys.stderr, flush=True)
