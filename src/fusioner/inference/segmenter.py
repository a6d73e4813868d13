"""The one object that segments: encoders, trained network and card together.

Letters: N windows (1 when the whole image is one), D channels, Gh Gw token grid, K labels, h w the network's own
resolution, H W pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, from_numpy, nn

from fusioner.device import pick_device
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.encoders.prompts import LabelEmbedder
from fusioner.errors import FusionerError
from fusioner.inference.decide import check_threshold, chunks, upsample
from fusioner.inference.encoded import EncodedImage, room_for
from fusioner.inference.image import ImageSource, read_image, resize, squash
from fusioner.inference.labels import check_labels
from fusioner.inference.refine import SIDE, EdgeFilter
from fusioner.inference.segmentation import Segmentation
from fusioner.inference.windows import Canvas, Origin, WindowGrid
from fusioner.model.checkpoint import ModelCard, load_model
from fusioner.model.fusioner import Fusioner

Resolution = Literal["fast", "native"]
OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with (windows done, windows in all) after every window; what it raises stops the work and comes out."""

CANVAS = 2**27  # float32 logits kept of all labels of one image: 512 MiB
FEATURES = 2**26  # float32 numbers the network may hold at once in its widest layer: 256 MiB


class Segmenter:
    """Names in, masks out.

    `seg(image, labels)` does it all; `seg.set_image(image)` followed by any number of `seg.segment(labels)` encodes
    the image once. Resolution "fast" looks once at the whole image, squashed to the training size; "native" slides
    windows of that size over the image's own pixels.

    Attributes:
        model, image_encoder, text_encoder, card, device: what it is made of, and where it computes.
        embed: labels to text vectors.
        smooth: lay native windows so that no seam shows; False is the official way, see `inference.windows`.
        refine: move the edges of "fast" masks to edges of the photograph, see `inference.refine`.
    """

    smooth = True
    refine = False

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
        on_progress: OnProgress | None = None,
    ) -> Segmentation:
        """Find `labels` in `image`; leaves the image of `set_image` alone.

        At native resolution every window is dropped as soon as it is done, so that memory holds any image.

        Args:
            image: anything `read_image` takes: a path, bytes, an open file, a Pillow image, an array.
            labels: names of things, or one string of them separated by commas.
            threshold: probability a pixel needs to take a label, 0..1; None is the model's own.
            background: False gives every pixel a label.
            resolution: "fast" or "native".
            on_progress: see `OnProgress`; "fast" counts as one window.

        Raises:
            FusionerError: bad image, labels, threshold or resolution, or not enough memory.
        """
        clean = check_labels(labels)
        check_threshold(0.5 if threshold is None else threshold)  # before the work, not after it
        if resolution == "fast":
            encoded = self.encode(image, on_progress=on_progress)
            return self._decide(encoded, self.own_logits(encoded, clean), clean, threshold, background)
        rgb, name, grid = self._open(image, resolution)
        with torch.inference_mode(), _enough_memory(name):
            logits = self._lay(self._look(rgb, grid, on_progress), self.embed(clean), grid)
        return self._decide(EncodedImage(rgb, torch.empty(0), grid, name), logits, clean, threshold, background)

    def set_image(
        self, image: ImageSource, resolution: Resolution = "fast", on_progress: OnProgress | None = None
    ) -> "Segmenter":
        """Encode `image` once and keep it for `segment`."""
        self._current = self.encode(image, resolution, on_progress)
        return self

    def segment(
        self, labels: Sequence[str] | str, *, threshold: float | None = None, background: bool = True
    ) -> Segmentation:
        """Find `labels` in the image of `set_image`; arguments and errors as in calling the segmenter."""
        if self._current is None:
            raise FusionerError("there is no image yet: call set_image first")
        clean = check_labels(labels)
        return self._decide(self._current, self.own_logits(self._current, clean), clean, threshold, background)

    @torch.inference_mode()
    def encode(
        self,
        image: ImageSource,
        resolution: Resolution = "fast",
        on_progress: OnProgress | None = None,
        scale: float = 1.0,
    ) -> EncodedImage:
        """Read and encode an image; arguments and errors as in calling the segmenter.

        The tokens of all windows are kept; native images of more than about 30 megapixels (with the embedded model)
        are refused for it, which calling the segmenter takes. `scale` enlarges (or shrinks) what the encoder is shown:
        the side of the squashed picture, or the picture that the windows slide over.
        """
        rgb, name, grid = self._open(image, resolution, scale)
        with _enough_memory(name):
            if resolution == "fast":
                tokens = self._tokens(squash(rgb, self.side(scale))[None])
                if on_progress:
                    on_progress(1, 1)
                return self.keep(rgb, tokens, name)
            kept, done = torch.empty(0), 0
            for tokens, origins in self._look(_scaled(rgb, grid), grid, on_progress):
                if not done:
                    kept = room_for(tokens, len(grid.origins), name)
                kept[done : done + len(origins)] = tokens
                done += len(origins)
            return EncodedImage(rgb, kept, grid, name)

    def side(self, scale: float = 1.0) -> int:
        """Side in pixels of the squashed picture: the training size, scaled to the nearest multiple of the stride."""
        stride = self.image_encoder.stride
        return self.card.resolution if scale == 1.0 else max(1, round(self.card.resolution * scale / stride)) * stride

    @torch.inference_mode()
    def encode_many(self, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[EncodedImage]:
        """Encode upright RGB images of any sizes in one forward, each squashed as a whole ("fast")."""
        with _enough_memory(f"{len(images)} images"):
            tokens = self._tokens(torch.stack([squash(rgb, self.card.resolution) for rgb in images]))
        return [self.keep(rgb, own[None].clone(), "image") for rgb, own in zip(images, tokens, strict=True)]

    def keep(self, rgb: UInt8[np.ndarray, "h w 3"], tokens: Float[Tensor, "1 d gh gw"], name: str) -> EncodedImage:
        """An image with the tokens of its squashed picture, ready to be asked."""
        edges = EdgeFilter(squash(rgb, SIDE).to(self.device)) if self.refine else None
        return EncodedImage(rgb, tokens, None, name, edges)

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
        with _enough_memory(encoded.name):
            if encoded.grid is not None:
                return self._lay([(encoded.tokens, encoded.grid.origins)], self.embed(labels), encoded.grid)
            if not self.model.labels_independent:
                return self._ask(encoded, labels)
            return encoded.answer(labels, lambda new: self._ask(encoded, new))

    def _decide(
        self,
        encoded: EncodedImage,
        logits: Float[Tensor, "k h w"],
        labels: list[str],
        threshold: float | None,
        background: bool,
    ) -> Segmentation:
        with _enough_memory(encoded.name):
            return Segmentation.from_logits(
                encoded.image,
                labels,
                logits,
                threshold=self.card.threshold if threshold is None else threshold,
                background=background,
                name=encoded.name,
            )

    def _open(
        self, image: ImageSource, resolution: Resolution, scale: float = 1.0
    ) -> tuple[UInt8[np.ndarray, "h w 3"], str, WindowGrid]:
        if resolution not in get_args(Resolution):
            raise FusionerError(f"the resolution is 'fast' or 'native', not {resolution!r}")
        rgb, name = read_image(image), Path(image).name if isinstance(image, str | Path) else "image"
        height, width = (max(1, round(side * scale)) for side in rgb.shape[:2])
        return rgb, name, WindowGrid(height, width, self.card.resolution, smooth=self.smooth)

    def _look(
        self, rgb: UInt8[np.ndarray, "h w 3"], grid: WindowGrid, on_progress: OnProgress | None
    ) -> Iterator[tuple[Float[Tensor, "n d gh gw"], list[Origin]]]:
        """Tokens of some windows at a time, with their origins; progress is told once the caller wants the next."""
        pixels, origins = from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1)[None], grid.origins
        some = 1 if self.device.type == "cpu" else 8
        for start in range(0, len(origins), some):
            here = origins[start : start + some]
            yield self._tokens(grid.cut(pixels, here)[:, 0].float().div_(255)), here
            if on_progress:
                on_progress(start + len(here), len(origins))

    def _lay(
        self,
        windows: Iterable[tuple[Float[Tensor, "n d gh gw"], list[Origin]]],
        text: Float[Tensor, "k dt"],
        grid: WindowGrid,
    ) -> Float[Tensor, "k h w"]:
        """The network's answers to all windows, averaged."""
        share = math.sqrt(CANVAS / (len(text) * grid.height * grid.width))
        side = grid.crop if share >= 1 else max(1, int(grid.crop * share))
        canvas, text = Canvas(grid, side), text.to(self.device)
        some = max(1, min(8, FEATURES // (max(self.model.config.decoder_widths) * side**2)))
        for tokens, origins in windows:
            for start in range(0, len(origins), some):
                here = origins[start : start + some]
                answers = self._network(tokens[start : start + some].float(), text, (side, side))
                for answer, origin in zip(answers, here, strict=True):
                    canvas.add(answer, origin)
        return _finite(canvas.mean())

    def _ask(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[Tensor, "k h w"]:
        logits = _finite(self._network(encoded.tokens, self.embed(labels).to(self.device), None)[0])
        return logits if encoded.edges is None else encoded.edges(logits)

    def _tokens(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d gh gw"]:
        # The encoder is nearly all of the work; fusion and decoding stay in float32, where logits keep their precision.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.image_encoder(images.to(self.device)).float()

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


def _scaled(rgb: UInt8[np.ndarray, "h w 3"], grid: WindowGrid) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The picture at the size of the grid that is laid over it."""
    pixels = from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1)
    return resize(pixels, (grid.height, grid.width)).permute(1, 2, 0).numpy()


def _finite(logits: Float[Tensor, "k h w"]) -> Float[Tensor, "k h w"]:
    if not logits.sum().isfinite():  # one number, where isfinite of all would need as much memory again
        raise FusionerError("the model answers with numbers that are not finite: its checkpoint is broken")
    return logits


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
