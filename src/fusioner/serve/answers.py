"""What goes back: a file of one of the formats, or the logits for the page."""

import base64
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fusioner.inference.formats import KINDS
from fusioner.inference.image import resize
from fusioner.inference.segmentation import Segmentation

CELLS = 2**20  # of one label's plane; a finer grid would not be told apart on a screen
NUMBERS = 2**24  # of all planes together: 32 MiB


def file_answer(result: Segmentation, kind: str, stem: str) -> tuple[bytes, str, str]:
    """The bytes of one of `KINDS`, their media type and a file name."""
    return result.to_bytes(kind), KINDS[kind].media_type, stem + KINDS[kind].ending


def logits_answer(
    logits: Float[Tensor, "k h w"], labels: list[str], size: tuple[int, int], threshold: float
) -> dict[str, Any]:
    """The `logits` format: planes of 16 bits (logit = low + step * value), for the page to decide by itself.

    Planes of more than `CELLS` cells, or `NUMBERS` together, are made smaller.
    """
    k, h, w = logits.shape
    share = min(1.0, (CELLS / (h * w)) ** 0.5, (NUMBERS / (k * h * w)) ** 0.5)
    planes = resize(logits.cpu(), (max(1, int(h * share)), max(1, int(w * share))))
    low = planes.min().item()
    step = max((planes.max().item() - low) / 65535, 1e-9)
    values = ((planes - low) / step).round_().to(torch.int32).numpy().astype("<u2")
    return {
        "width": size[1],
        "height": size[0],
        "labels": labels,
        "threshold": threshold,
        "grid": {"height": planes.shape[1], "width": planes.shape[2]},
        "low": low,
        "step": step,
        "planes": [base64.b64encode(plane.tobytes()).decode("ascii") for plane in values],
    }


def as_json(content: Any) -> bytes:
    """Compact UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
