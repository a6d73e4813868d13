"""What goes back: a file of one of the formats, or the logits for the page."""

import base64
import json
import math

from jaxtyping import Float

from fusioner.backend import Array, to_numpy
from fusioner.backend_numpy import shrink
from fusioner.formats import FORMATS
from fusioner.segmentation import Segmentation
from fusioner.serve.errors import ApiError

CELLS = 2**20  # of one label's plane; a finer grid would not be told apart on a screen
NUMBERS = 2**24  # of all planes together: 32 MiB
PROBABILITIES = 2**26  # of one npz: 128 MiB


def check_size(kind: str, labels: int, size: tuple[int, int]) -> None:
    """ApiError 422 for the one format that grows with labels times pixels, where it would fill the memory."""
    if kind == "npz" and labels * math.prod(size) > PROBABILITIES:
        raise ApiError(422, "npz holds every label's probability at every pixel, too many here: ask for fewer labels")


def file_answer(result: Segmentation, kind: str, stem: str) -> tuple[bytes, str, str]:
    """The bytes of one of `FORMATS`, their media type and a file name."""
    return result.to_bytes(kind), FORMATS[kind].media_type, stem + FORMATS[kind].suffix


def logits_answer(logits: Float[Array, "k h w"], labels: list[str], size: tuple[int, int], threshold: float) -> bytes:
    """The `logits` format: planes of 16 bits (logit = low + step * value), for the page to decide by itself.

    Planes of more than `CELLS` cells, or `NUMBERS` together, are made smaller.
    """
    k, h, w = logits.shape
    share = min(1.0, (CELLS / (h * w)) ** 0.5, (NUMBERS / (k * h * w)) ** 0.5)
    planes = shrink(to_numpy(logits), (max(1, int(h * share)), max(1, int(w * share))))
    low = planes.min().item()
    step = max((planes.max().item() - low) / 65535, 1e-9)
    values = ((planes - low) / step).round().astype("<u2")
    content = {
        "width": size[1],
        "height": size[0],
        "labels": labels,
        "threshold": threshold,
        "grid": {"height": planes.shape[1], "width": planes.shape[2]},
        "low": low,
        "step": step,
        "planes": [base64.b64encode(plane.tobytes()).decode("ascii") for plane in values],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
