"""Segments with an exported model, in NumPy and a runtime: nothing here needs torch.

Letters as in `inference.base`; T word pieces.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fusioner import backend_numpy as plain
from fusioner.base_segmenter import BaseSegmenter
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.errors import FusionerError
from fusioner.export.bundle import TOKENIZER, Bundle, read_bundle
from fusioner.export.runtime import Graph, open_graph, pick_runtime

BATCH = 64  # texts read at once


class ExportedSegmenter(BaseSegmenter):
    """Segments with a folder of `fusioner export`; what can be asked of it is that of `BaseSegmenter`.

    Attributes:
        bundle: what the folder says.
        runtime: who computes, "onnx" or "openvino".
    """

    def __init__(
        self, folder: str | Path, runtime: str = "auto", templates: Sequence[str] | None = None, threads: int = 0
    ) -> None:
        """Loads the graphs; `templates` replace the card's, `threads` 0 leaves their number to the runtime.

        Raises:
            FusionerError: the folder is no exported model or damaged, or the runtime cannot be had.
        """
        super().__init__()
        self.bundle = read_bundle(folder)
        self.card, self.stride = self.bundle.card, self.bundle.stride
        self.runtime = pick_runtime(runtime, self.bundle.format)
        self._image, text, self._labels = (
            open_graph(self.bundle.graph(part), self.runtime, threads) for part in ("image", "text", "labels")
        )
        self.embed = LabelEmbedder(ExportedText(self.bundle, text), templates or self.card.templates)

    def side(self, scale: float = 1.0) -> int:
        """As its parent's, to the nearest size that the graph takes."""
        step, wanted = self.bundle.step, super().side(scale)
        return max(1, round(wanted / step)) * step if step else self.card.resolution

    def _squash(self, rgb: UInt8[np.ndarray, "h w 3"], side: int) -> Float[np.ndarray, "3 side side"]:
        return plain.squash(rgb, side)

    def _pixels(self, rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "1 3 h2 w2"]:
        if rgb.shape[:2] != size:
            rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        return rgb.transpose(2, 0, 1)[None]

    def _tokens(self, images: Float[np.ndarray, "n 3 h w"]) -> Float[np.ndarray, "n d gh gw"]:
        return self._image(pixels=images.astype(np.float32, copy=False))

    def _answer(
        self, tokens: Float[np.ndarray, "n d gh gw"], text: Float[np.ndarray, "k dt"], size: tuple[int, int] | None
    ) -> Float[np.ndarray, "n k h w"]:
        if size is None:
            larger = 2 ** (len(self.card.config.decoder_widths) - 1)
            size = tokens.shape[2] * larger, tokens.shape[3] * larger
        return self._labels(tokens=tokens, text=text, canvas=np.zeros(size, np.float32))


class ExportedText:
    """The exported text encoder: strings in, one vector of unit length each out."""

    def __init__(self, bundle: Bundle, graph: Graph) -> None:
        """FusionerError when the tokenizer cannot be read."""
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise FusionerError(f"an exported model needs {error.name}: pip install 'fusioner[onnx]'") from error
        self.name, self.dim, self._graph = bundle.card.text_encoder, bundle.card.config.text_dim, graph
        self._lower = bundle.text["lower"]
        path = bundle.folder / TOKENIZER
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise FusionerError(f"{path} cannot be read ({error}): export the model again") from error
        context, (pad, number) = bundle.text["context"], bundle.text["pad"]
        self._tokenizer.enable_truncation(context)
        length = context if bundle.text["fixed"] else None
        self._tokenizer.enable_padding(pad_id=number, pad_token=pad, length=length)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n dt"]:
        """Any number of strings -> (n, d), in the order given."""
        parts = [self._read(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return plain.join(parts, 0) if parts else np.zeros((0, self.dim), np.float32)

    def _read(self, texts: Sequence[str]) -> Float[np.ndarray, "n dt"]:
        encoded = self._tokenizer.encode_batch([text.lower() if self._lower else text for text in texts])
        ids = np.array([one.ids for one in encoded], np.int64)  # (n, t)
        return self._graph(ids=ids, mask=np.array([one.attention_mask for one in encoded], np.int64))
