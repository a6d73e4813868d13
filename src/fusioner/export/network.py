"""The network behind a `Segmenter` as exported graphs, run by ONNX Runtime or OpenVINO without torch.

Letters as in `segmenter`; T tokens of a text.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from tokenizers import Tokenizer

from fusioner.cores import default_threads
from fusioner.encoders.prompt_templates import LabelEmbedder, check_templates
from fusioner.errors import FusionerError
from fusioner.export.bundle import FEATURES, Bundle, bundled_model, read_bundle

CACHED_IMAGES = 4  # whose label-independent features are kept
TEXT_BATCH_SIZE = 64
Graph: TypeAlias = Callable[..., dict[str, Shaped[np.ndarray, "..."]]]
"""Called with the inputs by name; returns the outputs by name (with OpenVINO by further names too)."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
READS = {"onnx": ("openvino", "onnx"), "openvino": ("openvino",)}
"""Runtimes of each format, the fastest first (see docs/export.md)."""


class ExportedNetwork:
    """The graphs of a folder of `fusioner export`, or of the bundled model; see `segmenter.Network`.

    Attributes:
        folder: of the graphs; None: the bundled model.
        bundle: the content of `fusioner.json`.
        runtime: "onnx" or "openvino".
    """

    device, window_batch_size = "cpu", 1

    def __init__(
        self,
        folder: str | Path | None,
        runtime: str = "auto",
        templates: Sequence[str] | str | None = None,
        threads: int = 0,
    ) -> None:
        """Load the graphs of a folder, by default those of the bundled model.

        `templates` replace the card's, `threads` 0: see `cores.default_threads`.

        Raises FusionerError if the folder is not an exported model or is corrupt, or the runtime is not available.
        """
        self.folder = folder
        self.bundle = bundled_model() if folder is None else read_bundle(folder)
        self.card, self.stride, self.size_step = self.bundle.card, self.bundle.stride, self.bundle.step
        self.card = replace(self.card, templates=check_templates(templates)) if templates else self.card
        self.runtime = pick_runtime(runtime, self.bundle.format)
        parts = self.bundle.parts
        with ThreadPoolExecutor(len(parts)) as pool:
            opened = pool.map(lambda part: open_graph(self.bundle.graph(part), self.runtime, threads), parts)
            self._graphs = dict(zip(parts, opened, strict=True))
        text = ExportedTextEncoder(self.bundle, self._graphs["text"])
        self.embed = LabelEmbedder(text, self.card.templates)
        self._cached: list[tuple[Float[np.ndarray, "n d gh gw"], dict[str, np.ndarray]]] = []

    def encode_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d gh gw"]:
        """Encode RGB images into unit-length tokens, see `Network.encode_images`."""
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
        return self._graphs["image"](pixels=pixels / np.float32(255))["tokens"]

    def predict_logits(
        self, tokens: Float[np.ndarray, "n d gh gw"], text: Float[np.ndarray, "k dt"], size: tuple[int, int] | None
    ) -> Float[np.ndarray, "n k h w"]:
        """Predict logits, see `Network.predict_logits`; label-independent features of the latest images are cached."""
        if size is None:
            scale = self.card.config.decoder_scale
            size = tokens.shape[2] * scale, tokens.shape[3] * scale
        features = next((features for cached, features in self._cached if cached is tokens), None)
        if features is None:
            outputs = self._graphs["features"](tokens=tokens) if self.bundle.features else {}
            features = {name: value for name, value in outputs.items() if name.startswith(FEATURES)}
            self._cached = [*self._cached, (tokens, features)][-CACHED_IMAGES:]
        canvas = np.zeros(size, np.float32)
        return self._graphs["labels"](tokens=tokens, text=text, canvas=canvas, **features)["logits"]


class ExportedTextEncoder:
    """The exported text encoder: strings to unit-length vectors."""

    def __init__(self, bundle: Bundle, graph: Graph) -> None:
        """Raises FusionerError if the tokenizer cannot be read."""
        self.name, self.dim, self._graph = bundle.card.text_encoder, bundle.card.config.text_dim, graph
        self._lower = bundle.text["lower"]
        path = bundle.folder / bundle.tokenizer
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise FusionerError(f"{path} cannot be read ({error}): export the model again") from error
        context, (pad, number) = bundle.text["context"], bundle.text["pad"]
        self._tokenizer.enable_truncation(context)
        length = context if bundle.text["fixed"] else None
        self._tokenizer.enable_padding(pad_id=number, pad_token=pad, length=length)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n dt"]:
        """Return one vector per string, in order."""
        parts = [self._embed(texts[start : start + TEXT_BATCH_SIZE]) for start in range(0, len(texts), TEXT_BATCH_SIZE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _embed(self, texts: Sequence[str]) -> Float[np.ndarray, "n dt"]:
        encoded = self._tokenizer.encode_batch([text.lower() if self._lower else text for text in texts])
        ids = np.array([text.ids for text in encoded], np.int64)  # (n, t)
        return self._graph(ids=ids, mask=np.array([text.attention_mask for text in encoded], np.int64))["vectors"]


def pick_runtime(wanted: str, format: str) -> str:
    """Return `wanted`, or for "auto" the first installed one of `READS`; FusionerError if it cannot be used."""
    able = READS[format]
    if wanted == "auto":
        wanted = next((name for name in able if find_spec(PACKAGES[name])), able[-1])
    if wanted == "torch":
        raise FusionerError(
            "torch cannot read an exported model: give the .safetensors file that was exported, or another --runtime"
        )
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
