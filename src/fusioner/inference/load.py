"""`fusioner.load`: a segmenter in one line."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fusioner.inference.segmenter import Segmenter

DEFAULT_MODEL = "default.safetensors"  # in fusioner/weights


def load(
    model: str | Path | None = None,
    device: str | torch.device | None = None,
    templates: Sequence[str] | None = None,
) -> Segmenter:
    """A ready segmenter.

    Args:
        model: a file that `fusioner train` wrote; None is the model inside the package, which needs no network.
        device: "cpu", "cuda", "mps"; None or "auto" takes the best there is.
        templates: prompt templates, each with a `{}` for the label; None keeps those of the model's card.

    Raises:
        FusionerError: the file is missing, damaged or foreign, an encoder cannot be had, or there is no such device.
    """
    if model is None:
        from fusioner.encoders.embedded import weights_file

        model = weights_file(DEFAULT_MODEL)
    return Segmenter.from_checkpoint(model, device, templates)
