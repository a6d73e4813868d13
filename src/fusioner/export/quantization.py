"""Static int8 quantization of the image graph with ONNX Runtime's quantizer, calibrated on photographs."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fusioner.errors import FusionerError

if TYPE_CHECKING:
    from onnx import ModelProto

PRODUCTS_PER_BLOCK = 6  # matrix products of a transformer block: query, key, value, output, and the two of its MLP


def quantize(image: "ModelProto", pixels: Sequence[Float[np.ndarray, "1 3 h w"]]) -> "ModelProto":
    """Quantize the query, key and value projections of every second block; the other layers change the masks too much.

    Weights get one scale per column and 7 of 8 bits, because processors without VNNI accumulate products in 16 bits.

    Args:
        image: graph of the image encoder.
        pixels: photographs in [0, 1] from which the ranges of activations are taken.

    Raises FusionerError if ONNX Runtime is missing, or the graph has no matrix products.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    except ModuleNotFoundError as error:
        raise FusionerError(f"--int8 needs {error.name}: pip install 'fusioner[export]'") from error
    import onnx

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([{"pixels": image} for image in pixels])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    constants = {constant.name for constant in image.graph.initializer}
    products = [
        node.name for node in image.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in constants
    ]
    if not products:
        raise FusionerError("the image encoder has no matrix products to quantize: export with --fp16")
    chosen = [
        name for at, name in enumerate(products) if at % PRODUCTS_PER_BLOCK < 3 and at // PRODUCTS_PER_BLOCK % 2 == 0
    ]
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer prints advice through the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "image.onnx", Path(folder) / "quantized.onnx"
            onnx.save(image, source)
            quantize_static(
                source,
                target,
                Reader(),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                nodes_to_quantize=chosen,
                extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
            )
            return onnx.load(target)
    finally:
        root.setLevel(level)
