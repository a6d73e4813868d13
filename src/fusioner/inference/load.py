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
    dataset: str = "pascal",
) -> Segmenter:
    """A ready segmenter.

    Args:
        model: a file that `fusioner train` wrote, or an official checkpoint (.pth, .pt; see `model.official`); None is
            the model inside the package, which needs no network.
        device: "cpu", "cuda", "mps"; None or "auto" takes the best there is.
        templates: prompt templates, each with a `{}` for the label; None keeps those of the model's card.
        dataset: for an official checkpoint: the set whose published normalisation it was trained with.

    Raises:
        FusionerError: the file is missing, damaged or foreign, an encoder cannot be had, or there is no such device.
    """
    if model is None:
        from fusioner.encoders.embedded import weights_file

        model = weights_file(DEFAULT_MODEL)
    if Path(model).suffix in (".pth", ".pt"):
        return _load_official(Path(model), device, templates, dataset)
    return Segmenter.from_checkpoint(model, device, templates)


def _load_official(
    path: Path, device: str | torch.device | None, templates: Sequence[str] | None, dataset: str
) -> Segmenter:
    from fusioner.model.official import PUBLISHED_NORMALISATION, load_official

    known = dataset if dataset in PUBLISHED_NORMALISATION else "pascal"
    network, image, text, card = load_official(path, dataset=known)
    if templates is not None:
        card.templates = tuple(templates)
    segmenter = Segmenter(network, image, text, card, device or "auto")
    segmenter.smooth = False  # as its published figures were measured
    return segmenter
