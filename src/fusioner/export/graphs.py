"""The ONNX graphs of an exported model: image encoder, image features, text encoder and fusion network.

Images and labels are encoded once; only the last graph runs for every query. Letters: B images,
Gh Gw token grid, D and E widths, K labels, N texts, T word pieces, H W pixels.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.export import Dim

from fusioner.errors import FusionerError
from fusioner.export.bundle import FEATURES
from fusioner.model.closed_set_head import ClosedSetScores
from fusioner.model.fusioner import Fusioner
from fusioner.model.similarity import ImageFeatures

if TYPE_CHECKING:
    from onnx import ModelProto

    from fusioner.segmenter import Segmenter

OPSET = 20
FEATURE_TYPES = ImageFeatures, ClosedSetScores
BATCH, LABELS, TEXTS, GRID = 4096, 65_535, 65_535, 512  # upper bounds: images, labels, texts, cells


class ImagePart(nn.Module):
    """Image encoder: RGB in [0, 1] to unit-length tokens; sides are multiples of the step of `image_graph`."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return self.encoder(pixels)


class TextPart(nn.Module):
    """Text encoder: token ids and their mask to one unit-length vector per text."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n e"]:
        return F.normalize(self.encoder.embed(ids, mask).float(), dim=1)


class FeaturesPart(nn.Module):
    """Image features: tokens to label-independent features, see `model.similarity.ImageFeatures`."""

    def __init__(self, model: Fusioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Float[Tensor, "b d gh gw"]) -> tuple[Tensor, ...]:
        return tuple(flatten_features(self.model.encode_image(tokens)).values())


class LabelPart(nn.Module):
    """Fusion network: tokens, features and label embeddings to logits of the size of `canvas` (values unused)."""

    def __init__(self, model: Fusioner) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Float[Tensor, "b d gh gw"],
        text: Float[Tensor, "k e"],
        canvas: Float[Tensor, "h w"],
        features: dict[str, Tensor],
    ) -> Float[Tensor, "b k h w"]:
        text, size = text.expand(tokens.shape[0], -1, -1), (canvas.shape[0], canvas.shape[1])
        return self.model(tokens, text, size, features=unflatten_features(features))


def flatten_features(features: ImageFeatures | None) -> dict[str, Tensor]:
    """Return the tensors of image features by name; empty for a model without."""
    if features is None:
        return {}
    values = features._asdict() | ({} if features.closed_set is None else features.closed_set._asdict())
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def unflatten_features(tensors: dict[str, Tensor]) -> ImageFeatures | None:
    """Invert `flatten_features`."""
    if not tensors:
        return None
    own, scores = ({name: tensors[name] for name in kind._fields if name in tensors} for kind in FEATURE_TYPES)
    return ImageFeatures(**own, closed_set=ClosedSetScores(**scores) if scores else None)


def build(segmenter: "Segmenter") -> tuple[dict[str, "ModelProto"], int]:
    """Return the graphs of a torch model on the CPU, by the names of `PARTS`, and the step of image sides (`Bundle`).

    Raises FusionerError if a part cannot be exported.
    """
    image, step = image_graph(segmenter)
    graphs = {"image": image, "text": text_graph(segmenter)}
    if segmenter.model.similarity is not None:
        graphs["features"] = features_graph(segmenter)
    return graphs | {"labels": labels_graph(segmenter)}, step


def image_graph(segmenter: "Segmenter", cells: int = 2, optimize: bool = True) -> tuple["ModelProto", int]:
    """Export the image encoder; return its graph and the step of image sides.

    Args:
        segmenter: the model.
        cells: sides of images are multiples of this many token strides; a strided network pads even grids all alike.
            If the encoder cannot be exported with dynamic sides, the only side is that of training and the step 0.
        optimize: fold constants, weights included.
    """
    encoder, side = cast("Any", segmenter.image_encoder), segmenter.card.resolution
    unit = encoder.size_step
    step = cells * unit if side % (cells * unit) == 0 else unit
    part, batch = ImagePart(encoder), _dim("b", BATCH)
    if side % step == 0:
        try:
            shape = {0: batch, 2: step * _dim("rows", GRID), 3: step * _dim("columns", GRID)}
            pixels = torch.rand(2, 3, 3 * step, 4 * step)
            return _onnx("image encoder", part, {"pixels": pixels}, {"pixels": shape}, ["tokens"], optimize), step
        except FusionerError:  # an encoder whose own code checks the size
            pass
    pixels = torch.rand(2, 3, side, side)
    return _onnx("image encoder", part, {"pixels": pixels}, {"pixels": {0: batch}}, ["tokens"], optimize), 0


def text_graph(segmenter: "Segmenter", optimize: bool = True) -> "ModelProto":
    """Export the text encoder; `optimize` as in `image_graph`."""
    encoder = cast("Any", segmenter.text_encoder)
    words = {0: _dim("n", TEXTS), 1: _dim("t", encoder.context)}
    example = {"ids": torch.ones(2, 7, dtype=torch.int64), "mask": torch.ones(2, 7, dtype=torch.int64)}
    return _onnx("text encoder", TextPart(encoder), example, {"ids": words, "mask": words}, ["vectors"], optimize)


def features_graph(segmenter: "Segmenter", optimize: bool = True) -> "ModelProto":
    """Export the image features of a model with similarity maps; `optimize` as in `image_graph`."""
    tokens, features = _example(segmenter.model)
    names = [f"{FEATURES}{name}" for name in features]
    return _onnx(
        "image features", FeaturesPart(segmenter.model), {"tokens": tokens}, {"tokens": _grid()}, names, optimize
    )


def labels_graph(segmenter: "Segmenter", optimize: bool = True) -> "ModelProto":
    """Export the fusion network; `optimize` as in `image_graph`."""
    tokens, features = _example(segmenter.model)
    vectors = F.normalize(torch.rand(3, segmenter.card.config.text_dim), dim=1)
    canvas = {0: _dim("h", 2**14), 1: _dim("w", 2**14)}
    varying = {name: (0, value.ndim - 1) for name, value in features.items()} | {"affinity": (0, 1, 2)}
    patches = {name: dict.fromkeys(varying[name], Dim.AUTO) for name in features}
    return _onnx(
        "fusion network",
        LabelPart(segmenter.model),
        {"tokens": tokens, "text": vectors, "canvas": torch.zeros(20, 25), "features": features},
        {"tokens": _grid(), "text": {0: _dim("k", LABELS)}, "canvas": canvas, "features": patches},
        ["logits"],
        optimize,
    )


def _example(model: Fusioner) -> tuple[Float[Tensor, "b d gh gw"], dict[str, Tensor]]:
    """Return random tokens and their features."""
    tokens = F.normalize(torch.rand(2, model.config.image_dim + model.config.similarity_dim, 10, 12), dim=1)
    with torch.no_grad():
        features = flatten_features(model.encode_image(tokens))
    return tokens, {name: value.contiguous() for name, value in features.items()}


def _grid() -> dict[int, Dim]:
    return {0: _dim("b", BATCH), 2: _dim("gh", GRID), 3: _dim("gw", GRID)}


def _dim(name: str, most: int) -> Dim:
    return Dim(name, min=1, max=most)


def _onnx(
    what: str,
    part: nn.Module,
    example: dict[str, Any],
    shapes: dict[str, Any],
    outputs: list[str],
    optimize: bool,
) -> "ModelProto":
    """Trace one part with `example`; raises FusionerError if torch cannot export it."""
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(
                part.eval(),
                (),
                example,
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            done = torch.onnx.export(
                program, (), dynamo=True, opset_version=OPSET, output_names=outputs, optimize=optimize
            )
    except ModuleNotFoundError as error:
        raise FusionerError(f"exporting needs {error.name}: pip install 'fusioner[export]'") from error
    except Exception as error:  # torch.export and the exporter raise many classes
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FusionerError(f"the {what} cannot be exported: {reason}") from error
    assert done is not None
    return done.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress lines and its notes on missing packages."""
    registry = logging.getLogger("torch.onnx")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.setLevel(level)
