"""Options that several commands share, as command-line flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from cyclopts import Parameter, Token

from fusioner.errors import FusionerError
from fusioner.options import InferenceOptions, check_scales


def parse_scales(_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Parse `0.75,1,1.25`; raise FusionerError unless all are numbers in (0, 16]."""
    text = tokens[0].value
    try:
        return check_scales([float(part) for part in text.split(",")])
    except ValueError as error:
        raise FusionerError(f"--tta-scales {text}: write comma-separated numbers, as in 0.75,1,1.25") from error


TtaScales: TypeAlias = Annotated[tuple[float, ...], Parameter(converter=parse_scales, n_tokens=1, negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class InferenceFlags(InferenceOptions):  # noqa: D101
    __doc__ = InferenceOptions.__doc__  # shown by --help

    tta_scales: TtaScales = (1.0,)


DEFAULT_FLAGS = InferenceFlags()


Labels: TypeAlias = Annotated[
    tuple[str, ...],
    Parameter(
        negative="",
        help="Labels to segment: names separated by commas, or a .txt file (UTF-8) with one label per line; may be "
        "repeated.",
    ),
]


def read_label_flags(values: Sequence[str]) -> list[str]:
    """Return the labels of all `--labels` values; FusionerError as `check_labels` and `read_labels` raise it."""
    from fusioner.labels import check_labels, parse_labels, read_labels

    lists = (read_labels(value) if value.endswith(".txt") else parse_labels(value) for value in values)
    return check_labels([label for labels in lists for label in labels])
