"""Rebuild the ONNX graphs of the bundled model; their weights stay in the safetensors files (ONNX external data).

python tools/build_graphs.py                        write src/fusioner/weights/*.onnx
python tools/build_graphs.py --check                compare with the files there; exit code 2 if they differ
python tools/build_graphs.py --check --parts text   the same for some of image, text, labels and features
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper, shape_inference

from fusioner.encoders.bundled import read_weights
from fusioner.encoders.efficientnet import EfficientNetLite2
from fusioner.errors import FusionerError
from fusioner.export.bundle import PARTS
from fusioner.export.graphs import features_graph, image_graph, labels_graph, text_graph
from fusioner.loading import load
from fusioner.segmenter import Segmenter
from fusioner.weights import weights_file

FILES = ("default.safetensors", "dinov2_s.safetensors", "effnet_lite2.safetensors", "minilm.safetensors")
DTYPES = {
    "F16": (np.float16, TensorProto.FLOAT16),
    "F32": (np.float32, TensorProto.FLOAT),
    "I64": (np.int64, TensorProto.INT64),
    "BOOL": (np.bool_, TensorProto.BOOL),
}
"""Type in safetensors -> NumPy's and ONNX's."""
SMALL = 64  # bytes; smaller constants stay in the graph
TOOLS = ("torch", "onnxscript")


class StoredTensor(NamedTuple):
    """Location of a tensor, and its type in safetensors."""

    file: str
    offset: int
    length: int
    dtype: str


def main(arguments: list[str] | None = None) -> int:
    """Build the graphs and write or compare them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the shipped graphs instead of writing them")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="graphs to build; default: all")
    options = parser.parse_args(arguments)
    try:
        for name, content in build_graphs(options.parts).items():
            path = weights_file(FILES[0]).parent / name
            if options.check and path.read_bytes() != content:
                raise FusionerError(f"the rebuilt {name} differs from {path}")
            if not options.check:
                path.write_bytes(content)
            print(f"{name}  {len(content) / 1e3:.0f} kB", flush=True)
    except FusionerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build_graphs(parts: Sequence[str] = PARTS) -> dict[str, bytes]:
    """Return the content of the file of each graph in `parts`."""
    stored = {key: tensor for name in FILES for key, tensor in index_tensors(weights_file(name))}
    model, graphs = unfused_model(), {"text": text_graph, "labels": labels_graph, "features": features_graph}
    built = {
        part: graphs[part](model, optimize=False) if part in graphs else image_graph(model, 1, optimize=False)[0]
        for part in parts
    }
    return {f"{part}.onnx": share_weights(graph, stored) for part, graph in built.items()}


def unfused_model() -> Segmenter:
    """Return the bundled model without folded BatchNorm, so that its weights are those of the files."""
    segmenter = load(None, "cpu", runtime="torch")
    (classifier,) = (cast("Any", part) for part in segmenter.image_encoder.parts if hasattr(part, "network"))
    network = EfficientNetLite2(classifier.output_stride)
    network.load_state_dict(read_weights("effnet_lite2.safetensors"))
    classifier.network = network.requires_grad_(False).eval()
    return segmenter


def index_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield each tensor of a safetensors file by the digest of its shape and values in single precision."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    for entry in header.values():
        low, high = (start + offset for offset in entry["data_offsets"])
        values = np.frombuffer(content[low:high], DTYPES[entry["dtype"]][0]).reshape(entry["shape"])
        widened = values.astype(np.float32) if entry["dtype"] == "F16" else values
        yield digest(widened), StoredTensor(path.name, low, high - low, entry["dtype"])


def digest(values: np.ndarray) -> str:
    """Return the sha256 (hex) of an array's type, shape and bytes."""
    return hashlib.sha256(f"{values.dtype} {values.shape}".encode() + values.tobytes()).hexdigest()


def share_weights(model: ModelProto, stored: dict[str, StoredTensor]) -> bytes:
    """Replace constants by references to stored tensors, widened to single precision on loading; return the file.

    Raises:
        FusionerError: a large constant is not in any file.
    """
    graph, casts = model.graph, []
    for constant in graph.initializer:
        values = numpy_helper.to_array(constant)
        found = stored.get(digest(values))
        if values.nbytes < SMALL:
            continue
        if found is None:
            if values.dtype.kind == "f":
                raise FusionerError(f"the weight {constant.name} {values.shape} is in none of {', '.join(FILES)}")
            continue
        name = constant.name
        constant.Clear()
        constant.name, constant.data_type = name, DTYPES[found.dtype][1]
        constant.dims.extend(values.shape)
        constant.data_location = TensorProto.EXTERNAL
        for key, value in (("location", found.file), ("offset", found.offset), ("length", found.length)):
            constant.external_data.add(key=key, value=str(value))
        if found.dtype == "F16":
            constant.name = f"{name}.half"
            casts.append(helper.make_node("Cast", [constant.name], [name], f"{name}.cast", to=TensorProto.FLOAT))
    fold_casts(model)
    nodes = [*casts, *graph.node]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    simplify(graph)
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]  # stack traces
        part.ClearField("doc_string")
    model.metadata_props.add(key="built with", value=built_with())
    return model.SerializeToString(deterministic=True)


def fold_casts(model: ModelProto) -> None:
    """Replace constants cast like another tensor by constants of its type, as Conv and Clip are fused without casts."""
    graph = shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type != "CastLike" or node.input[0] not in constants or node.input[1] not in types:
            continue
        (attribute,) = constants[node.input[0]].attribute
        value = helper.get_attribute_value(attribute)
        array = numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.array(value)
        cast = numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(types[node.input[1]])))
        node.CopyFrom(helper.make_node("Constant", [], node.output, node.name, value=cast))


def simplify(graph: GraphProto) -> None:
    """Remove nodes that keep ONNX Runtime from fusing others.

    These are computed zero biases of convolutions, and the NaN test of every softmax, as no row is fully masked.
    """
    producers = {name: node for node in graph.node for name in node.output}
    aliases = {}
    for node in graph.node:
        if node.op_type == "Where":
            test = producers.get(node.input[0])
            if test is not None and test.op_type == "IsNaN" and test.input[0] == node.input[2]:
                aliases[node.output[0]] = node.input[2]
        if node.op_type == "Conv" and len(node.input) == 3:
            bias = producers.get(node.input[2])
            if bias is not None and bias.op_type == "Expand":
                del node.input[2]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = aliases.get(name, name)
    live_names = {output.name for output in graph.output}
    live_nodes = []
    for node in reversed(graph.node):
        if live_names.intersection(node.output):
            live_names.update(node.input)
            live_nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(live_nodes))


def built_with() -> str:
    """Return the versions on which the bytes of the graphs depend."""
    return ", ".join(f"{name} {version(name).partition('+')[0]}" for name in TOOLS)


if __name__ == "__main__":
    sys.exit(main())
