"""8 bits where the masks bear it: the image part's matrix products, calibrated on photographs.

Static quantisation by ONNX Runtime: a scale for each row of a weight, a range for each activation from what the
photographs make of it. Weights take 7 of the 8 bits, because processors without VNNI add products up in 16.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from fusioner import backend_numpy as plain
from fusioner.backend import to_numpy
from fusioner.errors import FusionerError
from fusioner.export.parity import LABELS, LIMITS
from fusioner.export.smooth import answers, smooth
from fusioner.postprocess import decide_logits

if TYPE_CHECKING:
    from onnx import ModelProto

    from fusioner.segmenter import Segmenter

KINDS = ["MatMul", "Gemm", "Conv"]
ROOM = 0.7  # share of the limit that the photographs of calibration may use up: others will be harder


def quantise(
    image: "ModelProto",
    segmenter: "Segmenter",
    photos: Sequence[UInt8[np.ndarray, "h w 3"]],
    say: Callable[[str], object] = print,
) -> "ModelProto":
    """The image part in 8 bits, as much of it as the masks bear; tells what was left alone.

    Raises:
        FusionerError: a package is missing, or nothing of it bears 8 bits.
    """
    try:
        import onnxruntime.quantization  # noqa: F401
    except ModuleNotFoundError as error:
        raise FusionerError(f"--int8 needs {error.name}: pip install 'fusioner[export]'") from error
    pixels = [plain.squash(photo, segmenter.card.resolution)[None] for photo in photos]
    say(f"learning the range of every number; photographs: {len(photos)}")
    ranges, model = _calibrate(smooth(image, pixels), pixels)
    before = [_map(segmenter, np.asarray(to_numpy(segmenter._tokens(_tensor(one))))) for one in pixels]
    for what, names in _choices(image):
        small = _quantised(model, ranges, names)
        after = (_map(segmenter, tokens) for tokens, *_ in answers(small, pixels))
        changed = float(np.mean([(old != new).mean() for old, new in zip(before, after, strict=True)]))
        say(f"{what} in 8 bits: {changed:.2%} of the pixels change")
        if changed <= ROOM * LIMITS["int8"][1]:
            return small
    raise FusionerError("no part of the image encoder bears 8 bits on these photographs: export with --fp16")


def _choices(image: "ModelProto") -> Iterator[tuple[str, list[str]]]:
    """What to put into 8 bits, the most first; names of nodes.

    Convolutions only where there is nothing else: EfficientNet-Lite2's change 4 % of the pixels and gain no time.
    """
    constants = {constant.name for constant in image.graph.initializer}
    weighted = [node for node in image.graph.node if node.op_type in KINDS and node.input[1] in constants]
    products = [node.name for node in weighted if node.op_type != "Conv"]
    if products:
        # Six a transformer's block: queries, keys, values, the attention's last, the MLP's first, and the MLP's last,
        # which reads what its GELU made: numbers with the longest tails.
        for what, kept, every in (
            ("every matrix product", range(6), 1),
            ("five of six matrix products", range(5), 1),
            ("queries, keys, values and the MLPs' first products", (0, 1, 2, 4), 1),
            ("queries, keys and values", range(3), 1),
            ("queries, keys and values of every second block", range(3), 2),
        ):
            yield what, [name for at, name in enumerate(products) if at % 6 in kept and at // 6 % every == 0]
    else:
        yield "all convolutions but the first and the last", [node.name for node in weighted][1:-1]


def _calibrate(image: "ModelProto", pixels: Sequence[Float[np.ndarray, "1 3 h w"]]) -> tuple[Any, "ModelProto"]:
    """Ranges of all numbers, and the model with the shapes that the quantiser wants."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(pixels)

        def get_next(self) -> Any:  # None ends it
            one = next(self._left, None)
            return None if one is None else {"pixels": one}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "image.onnx"
        onnx.save(image, path)
        calibrator = create_calibrator(
            path,
            KINDS,
            augmented_model_path=str(Path(folder) / "watched.onnx"),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(Reader())
        return calibrator.compute_data(), load_model_with_shape_infer(path)


def _quantised(model: "ModelProto", ranges: Any, names: list[str]) -> "ModelProto":
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    with _quiet():
        quantiser = QDQQuantizer(
            deepcopy(model),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=names,
            nodes_to_exclude=[],
            op_types_to_quantize=KINDS,
            extra_options={"MatMulConstBOnly": True, "WeightSymmetric": True},
        )
        quantiser.quantize_model()
        return quantiser.model.model


def _map(segmenter: "Segmenter", tokens: Float[np.ndarray, "1 d gh gw"]) -> Any:
    with segmenter._computing("a photograph"):
        logits = segmenter._network(_tensor(tokens), segmenter.embed(LABELS), None)[0]
    resolution = segmenter.card.resolution
    return to_numpy(decide_logits(logits, (resolution, resolution), segmenter.card.threshold)[0])


def _tensor(values: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice, which it gives through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
