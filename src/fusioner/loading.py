"""`fusioner.load`: a segmenter in one line."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fusioner.base_segmenter import BaseSegmenter
from fusioner.errors import FusionerError
from fusioner.export.bundle import is_bundle

if TYPE_CHECKING:
    import torch

    from fusioner.segmenter import Segmenter

DEFAULT_MODEL = "default.safetensors"  # in fusioner/weights


def load(
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    templates: Sequence[str] | None = None,
    dataset: str = "pascal",
    runtime: str = "auto",
) -> BaseSegmenter:
    """A ready segmenter.

    Args:
        model: a file that `fusioner train` wrote, a folder of `fusioner export`, or an official checkpoint (.pth, .pt;
            see `model.official`); None is the model inside the package, which needs no network.
        device: "cpu", "cuda", "mps"; None or "auto" takes the best there is. An exported model computes on the CPU.
        templates: prompt templates, each with a `{}` for the label; None keeps those of the model's card.
        dataset: for an official checkpoint: the set whose published normalisation it was trained with.
        runtime: who computes: "torch", or for an exported model "onnx" or "openvino"; "auto" takes torch, and for an
            exported model the faster of those installed.

    Raises:
        FusionerError: the file is missing, damaged or foreign, an encoder cannot be had, there is no such device, or
            the runtime cannot be had or cannot read the model.
    """
    if model is not None and is_bundle(model):
        from fusioner.export.segmenter import ExportedSegmenter

        if device not in (None, "auto", "cpu"):
            raise FusionerError(f"an exported model computes on the CPU, not on '{device}'")
        return ExportedSegmenter(model, runtime, templates)
    if runtime not in ("auto", "torch"):
        what = f"{model} is no exported model" if model else "the model inside the package is not exported"
        raise FusionerError(f"{what}: run `fusioner export`, then give its folder as the model to --runtime {runtime}")
    if not find_spec("torch"):
        raise FusionerError(
            "there is no torch in this installation, so only a folder of `fusioner export` can be the model: give one "
            "with --model, or pip install fusioner with all it needs"
        )
    return load_torch(model, device, templates, dataset)


def load_torch(
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    templates: Sequence[str] | None = None,
    dataset: str = "pascal",
) -> "Segmenter":
    """As `load`, of what only torch computes."""
    from fusioner.encoders.bundled import weights_file
    from fusioner.segmenter import Segmenter

    path = Path(model if model is not None else weights_file(DEFAULT_MODEL))
    if path.suffix in (".pth", ".pt"):
        return _load_official(path, device, templates, dataset)
    return Segmenter.from_checkpoint(path, device, templates)


def _load_official(
    path: Path, device: "str | torch.device | None", templates: Sequence[str] | None, dataset: str
) -> "Segmenter":
    from fusioner.model.official_checkpoint import PUBLISHED_NORMALISATION, load_official
    from fusioner.segmenter import Segmenter

    known = dataset if dataset in PUBLISHED_NORMALISATION else "pascal"
    network, image, text, card = load_official(path, dataset=known)
    if templates is not None:
        card.templates = tuple(templates)
    segmenter = Segmenter(network, image, text, card, device or "auto")
    segmenter.smooth = False  # as its published figures were measured
    return segmenter
