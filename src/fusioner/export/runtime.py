"""Runtimes of exported graphs: ONNX Runtime and OpenVINO, imported on use."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Shaped

from fusioner.cores import default_threads
from fusioner.errors import FusionerError

Graph: TypeAlias = Callable[..., dict[str, Shaped[np.ndarray, "..."]]]
"""Called with the inputs by name; returns the outputs by name (with OpenVINO by further names too)."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
READS = {"onnx": ("openvino", "onnx"), "openvino": ("openvino",)}
"""Runtimes of each format, the fastest first (see docs/export.md)."""


def pick_runtime(wanted: str, format: str) -> str:
    """Return `wanted`, or for "auto" the first installed one of `READS`; FusionerError if it cannot be used."""
    able = READS[format]
    if wanted == "auto":
        wanted = next((name for name in able if find_spec(PACKAGES[name])), able[-1])
    if wanted == "torch":
        raise FusionerError("torch cannot read an exported model: use --runtime onnx or openvino, or its .safetensors")
    if wanted not in PACKAGES:
        raise FusionerError(f"there is no runtime '{wanted}': choose auto, torch, onnx or openvino")
    if wanted not in able:
        raise FusionerError(f"--runtime {wanted} cannot read {format} files: use --runtime {able[0]}")
    if not find_spec(PACKAGES[wanted]):
        raise FusionerError(f"--runtime {wanted} needs {PACKAGES[wanted]}: pip install 'fusioner[{wanted}]'")
    return wanted


def open_graph(path: Path, runtime: str, threads: int = 0) -> Graph:
    """Load a graph; `threads` 0: see `default_threads`. FusionerError if the file is corrupt."""
    try:
        return (_onnxruntime if runtime == "onnx" else _openvino)(path, threads)
    except Exception as error:  # each runtime raises its own classes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FusionerError(f"{path} cannot be loaded ({reason}): export the model again") from error


def _onnxruntime(path: Path, threads: int) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.log_severity_level = 3  # errors only
    options.enable_mem_pattern = False  # made for inputs of one shape: a fifth more memory, no faster
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # idle threads of three sessions would compete
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda **inputs: dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def _openvino(path: Path, threads: int) -> Graph:
    import openvino

    # By default it computes in bfloat16 on processors that support it, which moves mask borders.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_NUM_THREADS"] = str(threads or default_threads())
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda **inputs: {name: value for output, value in compiled(inputs).items() for name in output.names}
