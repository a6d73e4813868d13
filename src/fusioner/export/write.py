"""Write the folder of an exported model, after checking it against torch."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

from fusioner.errors import FusionerError
from fusioner.export.bundle import ENDINGS, PARTS, Bundle
from fusioner.export.network import ExportedNetwork
from fusioner.export.parity import Row, compare, table
from fusioner.image import resize
from fusioner.io import cannot_write, writable_folder
from fusioner.model.checkpoint import EXPORT_MANIFEST
from fusioner.segmenter import Segmenter

if TYPE_CHECKING:
    from onnx import ModelProto

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]
HALVED = 1024  # numbers in a constant from which on it is worth storing in half precision
Photos = Sequence[UInt8[np.ndarray, "_ _ 3"]]


def export(
    segmenter: "Segmenter",
    out: str | Path,
    format: Format = "onnx",
    precision: Precision = "fp32",
    photos: Photos = (),
    say: Callable[[str], object] = print,
    traced: tuple[dict[str, "ModelProto"], int] | None = None,
) -> list[Row]:
    """Export a model to the folder `out`; return its differences from torch.

    Precision is that of the stored weights. "fp16" and the parts that "int8" leaves alone still compute in single
    precision. An earlier export in the folder is replaced once the new one has passed the check.

    Args:
        segmenter: what to export, on the CPU.
        out: folder, made where it is missing.
        format, precision: of the graphs.
        photos: real photographs: for the check, and for "int8" to learn the range of every number from.
        say: called with progress messages.
        traced: `graphs.build(segmenter)`, to write a model in several formats or precisions; None: trace it now.

    Raises FusionerError if a part cannot be exported, a package is missing, the answers differ by more than
    `parity.LIMITS`, or the folder cannot be written to.
    """
    if not photos:
        raise FusionerError("exporting needs photos for its check: name a folder of them")
    from fusioner.export.graphs import build

    out = writable_folder(out)
    tokenizer, text = text_settings(segmenter.text_encoder)
    for abandoned in out.glob(".part-*"):  # of a killed run
        shutil.rmtree(abandoned, ignore_errors=True)
    if traced is None:
        say("tracing image encoder, text encoder and fusion network")
        traced = build(segmenter)
    graphs, step = traced
    if precision == "int8":
        from fusioner.export.quantization import quantize

        say(f"calibrating int8 on {len(photos)} photographs")
        side = segmenter.card.resolution
        resized = (resize(photo, (side, side)).astype(np.float32) for photo in photos)
        pixels = [image.transpose(2, 0, 1)[None] / np.float32(255) for image in resized]
        graphs = graphs | {"image": quantize(graphs["image"], pixels)}
    with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as beside:
        made = Path(beside), format, precision, segmenter.card, step, segmenter.image_encoder.stride, text
        bundle = Bundle(*made, features="features" in graphs)
        for part, model in graphs.items():
            _save(model, bundle.graph(part), format, half=precision != "fp32")
        (bundle.folder / bundle.tokenizer).write_text(tokenizer, "utf-8")
        bundle.write()
        say(f"checking against torch; photographs: {len(photos)}")
        rows = compare(segmenter, Segmenter(ExportedNetwork(bundle.folder, format)), photos)
        for line in table(rows, precision):
            say(line)
        if not all(row.holds(precision) for row in rows):
            raise FusionerError(f"the {precision} {format} model does not agree with torch: nothing was written")
        replace(bundle, parity=[asdict(row) for row in rows]).write()
        _replace(bundle.folder, out)
    return rows


def text_settings(encoder: Any) -> tuple[str, dict[str, Any]]:
    """Return tokenizer.json and `Bundle.text` of a text encoder; FusionerError if its tokenizer is plain Python."""
    content = encoder.tokenizer_json()
    if not isinstance(content, dict):
        raise FusionerError(f"{encoder.name}: its tokenizer has no tokenizer.json, without which it cannot be exported")
    settings = {
        "context": encoder.context,
        "fixed": encoder.padding == "max_length",
        "pad": list(encoder.pad),
        "lower": encoder.lowercase,
    }
    return json.dumps(content | {"padding": None, "truncation": None}, ensure_ascii=False), settings


def _save(model: "ModelProto", path: Path, format: Format, half: bool) -> None:
    import onnx

    if format == "onnx":
        onnx.save(halve(model) if half else model, path)
        return
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise FusionerError(f"--format openvino needs {error.name}: pip install 'fusioner[openvino]'") from error
    with tempfile.TemporaryDirectory() as folder:  # it reads files only
        file = Path(folder) / "graph.onnx"
        onnx.save(model, file)
        openvino.save_model(openvino.convert_model(file), path, compress_to_fp16=half)


def halve(model: "ModelProto") -> "ModelProto":
    """Return a copy with large constants in half precision, cast back to single precision when it is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    model, casts = deepcopy(model), []
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        large = values.ndim > 1 and values.size >= HALVED  # scales of 8-bit weights stay in fp32
        if values.dtype != np.float32 or not large or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = constant.name
        constant.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [constant.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _replace(made: Path, out: Path) -> None:
    """Move the files into `out`, the manifest last."""
    try:
        old = [path for path in out.iterdir() if path.suffix in (*ENDINGS.values(), ".bin") and path.stem in PARTS]
        others = [*old, *(path for path in map(out.joinpath, os.listdir(made)) if path.exists())]
        if others and not (out / EXPORT_MANIFEST).exists():
            raise FusionerError(f"{others[0]} exists and was not written by fusioner: choose another folder")
        (out / EXPORT_MANIFEST).unlink(missing_ok=True)
        for path in old:
            path.unlink()
        for file in sorted(made.iterdir(), key=lambda file: file.name == EXPORT_MANIFEST):
            shutil.move(file, out / file.name)
    except OSError as error:
        raise cannot_write(out, error) from error
