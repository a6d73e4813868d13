"""Before 8 bits: long tails move from activations, which share one range, into weights, which have one a column.

SmoothQuant (Xiao et al., ICML 2023, arXiv 2211.10438), where a norm stands before matrix products: what channel j of
the norm's answer is divided by, row j of the weights behind it is multiplied by, and the products stay what they were.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

STRENGTH = 0.5  # 0: all stays with the activations, 1: all goes into the weights; the paper's own


def smooth(image: "ModelProto", pixels: Sequence[Float[np.ndarray, "1 3 h w"]]) -> "ModelProto":
    """The same function, to the rounding of floats, with norms whose channels have like ranges on these pictures."""
    from onnx import numpy_helper

    image = deepcopy(image)
    constants = {constant.name: constant for constant in image.graph.initializer}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in image.graph.node:
        for name in node.input:
            readers[name].append(node)

    def only_weighs(name: str) -> bool:
        ends = {one.name for one in image.graph.output}
        behind = [node.op_type == "MatMul" and node.input[1] in constants for node in readers[name]]
        return bool(behind) and all(behind) and name not in ends

    def change(node: "NodeProto", place: int, by: Float[np.ndarray, "..."]) -> None:
        """The node's own from now on, because equal constants may be one."""
        values = numpy_helper.to_array(constants[node.input[place]]) * by
        node.input[place] = f"{node.output[0]}_smoothed_{place}"
        image.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.input[place]))

    norms = [node for node in image.graph.node if node.op_type == "LayerNormalization"]
    norms = [node for node in norms if set(node.input[1:]) <= constants.keys() and only_weighs(node.output[0])]
    peaks = _peaks(image, [node.output[0] for node in norms], pixels)
    for norm in norms:
        products = readers[norm.output[0]]
        weights = [np.abs(numpy_helper.to_array(constants[product.input[1]])) for product in products]
        rows = np.max([weight.max(axis=1) for weight in weights], axis=0)
        channels = np.maximum(peaks[norm.output[0]], 1e-5)
        factor = channels**STRENGTH / np.maximum(rows, 1e-5) ** (1 - STRENGTH)
        for place in range(1, len(norm.input)):
            change(norm, place, 1 / factor)
        for product in products:
            change(product, 1, factor[:, None])
    read = {name for node in image.graph.node for name in node.input}
    for place in reversed(range(len(image.graph.initializer))):
        if image.graph.initializer[place].name not in read:
            del image.graph.initializer[place]
    return image


def answers(model: "ModelProto", pixels: Sequence[Float[np.ndarray, "1 3 h w"]]) -> Iterator[list[Any]]:
    """What ONNX Runtime makes of each picture: all outputs of the model, in their order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; the rest speaks of its own optimisations
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for one in pixels:
        yield list(session.run(None, {"pixels": one}))


def _peaks(image: "ModelProto", names: Sequence[str], pixels: Sequence[Any]) -> dict[str, Float[np.ndarray, " d"]]:
    """Largest absolute value of each channel of the named activations."""
    from onnx import TensorProto, helper

    if not names:
        return {}
    watched = deepcopy(image)
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    peaks: dict[str, Any] = dict.fromkeys(names, 0.0)
    for values in answers(watched, pixels):
        for name, seen in zip(names, values[-len(names) :], strict=True):
            peaks[name] = np.maximum(peaks[name], np.abs(seen).reshape(-1, seen.shape[-1]).max(axis=0))
    return peaks
