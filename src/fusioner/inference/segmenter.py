"""The one object that segments: encoders, trained network and card together.

Letters: N windows (1 when the whole image is one), D channels, Gh Gw token grid, K labels, h w the network's own
resolution, H W pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusioner.device import pick_device
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.encoders.prompts import LabelEmbedder
from fusioner.errors import FusionerError
from fusioner.inference.decide import chunks, upsample
from fusioner.inference.image import ImageSource, read_image, squash, to_tensor
from fusioner.inference.labels import check_labels
from fusioner.inference.segmentation import Segmentation
from fusioner.inference.windows import Canvas, WindowGrid
from fusioner.model.checkpoint import ModelCard, load_model
from fusioner.model.fusioner import Fusioner

Resolution = Literal["fast", "native"]
CANVAS = 2**27  # float32 logits kept of all labels of one image: 512 MiB
FEATURES = 2**26  # float32 numbers the network may hold at once in its widest layer: 256 MiB


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """What the frozen encoder said of an image; labels can be asked of it any number of times.

    Attributes:
        image: upright RGB.
        tokens: one grid of unit-length tokens a window.
        grid: where the windows lie; None when the tokens are of the whole image.
        name: the image's file name, where it came from a file.
    """

    image: UInt8[np.ndarray, "h w 3"]
    tokens: Float[Tensor, "n d gh gw"]
    grid: WindowGrid | None
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.image.shape[0], self.image.shape[1]


class Segmenter:
    """Names in, masks out.

    `seg(image, labels)` does it all; `seg.set_image(image)` followed by any number of `seg.segment(labels)` encodes
    the image once. Resolution "fast" looks once at the whole image, squashed to the training size; "native" slides
    windows of that size over the image's own pixels.
    """

    def __init__(
        self,
        model: Fusioner,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        card: ModelCard,
        device: str | torch.device = "cpu",
    ) -> None:
        """Moves all three to `device`.

        Raises:
            FusionerError: the encoders' widths are not the ones the network was trained on; no such device.
        """
        self.device = pick_device(device)
        config = model.config
        _check_width("image", image_encoder, config.image_dim + config.aligned_dim)
        _check_width("text", text_encoder, config.text_dim)
        self.model = model.to(self.device).eval()
        self.image_encoder, self.text_encoder, self.card = image_encoder, text_encoder, card
        for encoder in (image_encoder, text_encoder):
            if isinstance(encoder, nn.Module):
                encoder.to(self.device)
        self.embed = LabelEmbedder(text_encoder, card.templates)
        self._current: EncodedImage | None = None

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device | None = None, templates: Sequence[str] | None = None
    ) -> "Segmenter":
        """Load a file of `fusioner train` and the encoders its card names; `templates` replace the card's.

        Raises:
            FusionerError: the file is missing, damaged or foreign, or an encoder cannot be had.
        """
        from fusioner.encoders.zoo import build_image_encoder, build_text_encoder

        chosen = pick_device(device)
        model, card = load_model(path)
        image_encoder, text_encoder = build_image_encoder(card.image_encoder), build_text_encoder(card.text_encoder)
        image_encoder.mean, image_encoder.std = card.mean or image_encoder.mean, card.std or image_encoder.std
        segmenter = cls(model, image_encoder, text_encoder, card, chosen)
        if templates is not None:
            segmenter.embed = LabelEmbedder(text_encoder, templates)
        return segmenter

    def __call__(
        self,
        image: ImageSource,
        labels: Sequence[str] | str,
        *,
        threshold: float | None = None,
        background: bool = True,
        resolution: Resolution = "fast",
    ) -> Segmentation:
        """Find `labels` in `image`; leaves the image of `set_image` alone.

        Args:
            image: anything `read_image` takes: a path, bytes, an open file, a Pillow image, an array.
            labels: names of things, or one string of them separated by commas.
            threshold: probability a pixel needs to take a label, 0..1; None is the model's own.
            background: False gives every pixel a label.
            resolution: "fast" or "native".

        Raises:
            FusionerError: bad image, labels, threshold or resolution, or not enough memory.
        """
        clean = check_labels(labels)
        return self._segment(self.encode(image, resolution), clean, threshold, background)

    def set_image(self, image: ImageSource, resolution: Resolution = "fast") -> "Segmenter":
        """Encode `image` once and keep it for `segment`."""
        self._current = self.encode(image, resolution)
        return self

    def segment(
        self, labels: Sequence[str] | str, *, threshold: float | None = None, background: bool = True
    ) -> Segmentation:
        """Find `labels` in the image of `set_image`; arguments and errors as in calling the segmenter."""
        if self._current is None:
            raise FusionerError("there is no image yet: call set_image first")
        return self._segment(self._current, check_labels(labels), threshold, background)

    @torch.inference_mode()
    def encode(self, image: ImageSource, resolution: Resolution = "fast") -> EncodedImage:
        """Read and encode an image; errors as in calling the segmenter."""
        if resolution not in get_args(Resolution):
            raise FusionerError(f"the resolution is 'fast' or 'native', not {resolution!r}")
        rgb, side = read_image(image), self.card.resolution
        name = Path(image).name if isinstance(image, str | Path) else "image"
        with _enough_memory(name):
            if resolution == "fast":
                return EncodedImage(rgb, self._tokens(squash(rgb, side)[None]), None, name)
            grid, pixels = WindowGrid(rgb.shape[0], rgb.shape[1], side), to_tensor(rgb)[None]
            origins, some = grid.origins, 1 if self.device.type == "cpu" else 8
            parts = [
                self._tokens(grid.cut(pixels, origins[start : start + some])[:, 0])
                for start in range(0, len(origins), some)
            ]
            return EncodedImage(rgb, torch.cat(parts), grid, name)

    def logits(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "k H W"]:
        """Logits of every label at `size` (height, width), by default the image's own; all at once in memory."""
        return upsample(self.own_logits(encoded, labels), size or encoded.size)

    def probabilities(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "k H W"]:
        """Sigmoid of `logits`, 0..1; labels do not exclude each other, so they need not sum to 1."""
        return torch.cat(list(chunks(self.own_logits(encoded, labels), size or encoded.size)))

    @torch.inference_mode()
    def own_logits(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        """Logits at the network's own resolution (fast), or averaged over the windows (native: the image's own size,
        less where labels times pixels exceed `CANVAS`).

        Raises:
            FusionerError: not enough memory, or the network's answer is not finite (a broken checkpoint).
        """
        text = self.embed(labels).to(self.device)
        with _enough_memory(encoded.name):
            if encoded.grid is None:
                logits = self._network(encoded.tokens, text, None)[0]
            else:
                logits = self._windows(encoded.tokens, text, encoded.grid)
        if not logits.sum().isfinite():  # one number, where isfinite of all would need as much memory again
            raise FusionerError("the model answers with numbers that are not finite: its checkpoint is broken")
        return logits

    def _segment(
        self, encoded: EncodedImage, labels: list[str], threshold: float | None, background: bool
    ) -> Segmentation:
        logits = self.own_logits(encoded, labels)
        with _enough_memory(encoded.name):
            return Segmentation.from_logits(
                encoded.image,
                labels,
                logits,
                threshold=self.card.threshold if threshold is None else threshold,
                background=background,
                name=encoded.name,
            )

    def _tokens(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d gh gw"]:
        # The encoder is nearly all of the work; fusion and decoding stay in float32, where logits keep their precision.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.image_encoder(images.to(self.device)).float()

    def _windows(
        self, tokens: Float[Tensor, "n d gh gw"], text: Float[Tensor, "k dt"], grid: WindowGrid
    ) -> Float[Tensor, "k h w"]:
        share = math.sqrt(CANVAS / (len(text) * grid.height * grid.width))
        side = grid.crop if share >= 1 else max(1, int(grid.crop * share))
        canvas = Canvas(grid, side)
        some = max(1, min(8, FEATURES // (max(self.model.config.decoder_widths) * side**2)))
        for part, origins in zip(tokens.split(some), _split(grid.origins, some), strict=True):
            for window, origin in zip(self._network(part, text, (side, side)), origins, strict=True):
                canvas.add(window, origin)
        return canvas.mean()

    def _network(
        self, tokens: Float[Tensor, "n d gh gw"], text: Float[Tensor, "k dt"], size: tuple[int, int] | None
    ) -> Float[Tensor, "n k h w"]:
        """The trained network, labels in portions where they do not depend on each other."""
        portion, config = len(text), self.model.config
        if self.model.labels_independent:  # each brings its own tokens and features
            n = tokens[0, 0].numel()
            cells = math.prod(size) if size else n * 4 ** (len(config.decoder_widths) - 1)
            numbers = max(config.decoder_widths) * cells + int(n * config.width * (config.mlp_ratio + 4))
            portion = max(1, FEATURES // (numbers * len(tokens)))
        parts = [self.model(tokens, some.expand(len(tokens), -1, -1), size) for some in text.split(portion)]
        return torch.cat(parts, dim=1)


def _split(origins: list[tuple[int, int]], some: int) -> Iterator[list[tuple[int, int]]]:
    return (origins[start : start + some] for start in range(0, len(origins), some))


def _check_width(kind: str, encoder: ImageEncoder | TextEncoder, expected: int) -> None:
    if encoder.dim != expected:
        raise FusionerError(
            f"the model was trained on {kind} vectors of width {expected}, encoder '{encoder.name}' gives "
            f"{encoder.dim}: use the encoder it was trained with"
        )


@contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise FusionerError(f"not enough memory for {name}: use fewer labels, a smaller image or 'fast'") from error
