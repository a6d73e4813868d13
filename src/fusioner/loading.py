"""Load a segmenter: a trained, exported or official model, or a pair of encoders without training."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fusioner.cores import available_cores
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import EXPORT_MANIFEST
from fusioner.options import check_model_or_pair
from fusioner.segmenter import Segmenter, import_torch_network

if TYPE_CHECKING:
    import torch

    from fusioner.torch_network import TorchNetwork


def load(
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    templates: Sequence[str] | str | None = None,
    runtime: str = "auto",
    dataset: str = "pascal",
    threads: int = 0,
    *,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    background: Sequence[str] | None = None,
) -> Segmenter:
    """Return a segmenter: a trained model, or with `image_encoder` a pair of encoders without training.

    Args:
        model: a file of `fusioner train`, a folder of `save_pretrained` or `fusioner export`, or an official checkpoint
            (.pth, .pt; see `model.official_checkpoint`); default: the bundled model, which needs no network.
        device: "cpu", "cuda", "mps"; None or "auto": the best available. Exported models run on the CPU.
        templates: prompt template or templates, each with a `{}` for the label; default: the card's.
        runtime: "torch", or for the bundled and for exported models "onnx" (ONNX Runtime) or "openvino"; "auto": for a
            file torch, for an exported model the fastest installed one, and for the bundled model ONNX Runtime, which
            starts faster, unless `device` or a GPU calls for torch.
        threads: CPU threads; 0: $OMP_NUM_THREADS, else as many as there are cores in the affinity and quota.
        dataset: for an official checkpoint: the data set whose normalisation it was trained with.
        image_encoder: in place of a model: a text-aligned image encoder, or A+B, where the second gives the attention
            (see docs/training-free.md).
        text_encoder: of the pair; default: that of the image encoder's model.
        background: of the pair: names that compete with the labels and whose pixels get none; default: SCLIP's list.

    Raises:
        FusionerError: the file is missing, corrupt or not a Fusioner model, or an encoder, the device or the runtime
            is not available.
    """
    check_model_or_pair(model, image_encoder, text_encoder, background)
    if image_encoder is not None:
        network = _prepare_torch(image_encoder, runtime, threads)
        return Segmenter(network.from_encoders(image_encoder, text_encoder, device, templates, background))
    if not runs_on_torch(model, device, runtime):
        from fusioner.export.network import ExportedNetwork

        if device not in (None, "auto", "cpu"):
            raise FusionerError(f"an exported model runs on the CPU, not on '{device}'")
        if model is None and runtime == "auto":
            runtime = "onnx"
        segmenter = Segmenter(ExportedNetwork(model, runtime, templates, threads))
    else:
        network = _prepare_torch(model, runtime, threads)
        if model is not None and Path(model).suffix in (".pth", ".pt"):
            segmenter = Segmenter(network.from_official(model, device, templates, dataset))
            segmenter.overlap_blending = False  # as its published scores were measured
        else:
            segmenter = Segmenter(network.from_checkpoint(model, device, templates))
    return segmenter


def runs_on_torch(
    model: str | Path | None = None,
    device: "str | torch.device | None" = None,
    runtime: str = "auto",
    image_encoder: str | None = None,
    **_: object,
) -> bool:
    """Return whether `load` uses torch for these arguments; exported models run without it, on the CPU."""
    if image_encoder is not None:
        return True
    if model is not None:
        return not (Path(model) / EXPORT_MANIFEST).is_file()
    return _prefers_torch(device) if runtime == "auto" else runtime == "torch"


def _prepare_torch(model: object, runtime: str, threads: int) -> "type[TorchNetwork]":
    """Check the runtime of `model`, set torch's threads, and return the class of its networks."""
    if runtime not in ("auto", "torch"):
        raise FusionerError(
            f"{model} is not an exported model: run `fusioner export`, then pass its folder as the model to "
            f"--runtime {runtime}"
        )
    network = import_torch_network()
    import torch

    if threads or available_cores() < torch.get_num_threads():  # torch ignores the quota of a container
        torch.set_num_threads(threads or available_cores())
    return network


def _prefers_torch(device: "str | torch.device | None") -> bool:
    """Return whether the bundled model should run on torch: a device other than the CPU is requested or present."""
    if device not in (None, "auto"):
        return str(device) != "cpu"
    # Importing torch only to find no GPU would take longer than everything else.
    gpu = sys.platform in ("darwin", "win32") or Path("/dev/nvidiactl").exists()
    return gpu and find_spec("torch") is not None
