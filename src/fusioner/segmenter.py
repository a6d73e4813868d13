"""Segment images by free-form labels with a trained network; `loading.load` builds the segmenter.

Everything behind the network is NumPy, so that exported models run without torch.
Letters: N windows (1 for a whole image), D channels, Gh Gw token grid, K labels, h w the network's resolution,
H W pixels.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, overload

import numpy as np
from jaxtyping import Float, UInt8

from fusioner.errors import FusionerError, missing_package
from fusioner.image import ImageSource, read_image, resize
from fusioner.labels import LabelHierarchy, SoftmaxNames, cap_surfaces, check_labels
from fusioner.options import DEFAULT_OPTIONS, ENCODING_OPTIONS, MAX_LONG_SIDE, InferenceOptions, Mode
from fusioner.postprocess import (
    GUIDE_SIZE,
    GuidedFilter,
    iter_probabilities,
    mean_logits,
    refine_by_pixels,
    upsample,
)
from fusioner.segmentation import Segmentation
from fusioner.sliding_window import Canvas, Origin, WindowGrid

if TYPE_CHECKING:
    import torch

    from fusioner.encoders.base import ImageEncoder, TextEncoder
    from fusioner.encoders.prompt_templates import LabelEmbedder
    from fusioner.model.checkpoint import ModelCard
    from fusioner.model.fusioner import Fusioner
    from fusioner.torch_network import TorchNetwork

CROP_SCALE = 1.5  # mode multicrop: size of the resized image, as a multiple of a crop; chosen on training images
MIN_CROP_LOGIT = -4.0  # mode multicrop: names below it everywhere in the whole image are not looked for in the crops
MAX_TOKEN_BYTES = 2**30  # of one encoded image
LOGITS_CACHE_BYTES = 2**23  # of one encoded image
MAX_CANVAS_SIZE = 2**27  # float32 logits of all labels of one image: 512 MiB
MAX_FEATURE_SIZE = 2**26  # float32 values of the network's widest layers: 256 MiB
MAX_FEATURE_SIZE_CPU = 2**24  # the same on a CPU at the network's resolution (docs/lab-notes/speed.md)

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with (windows done, windows in total) after every window; an exception it raises stops the work."""


class Network(Protocol):
    """Frozen encoders and trained network: a torch model (`TorchNetwork`) or exported graphs (`ExportedNetwork`).

    Attributes:
        card: the model's card.
        device: that it runs on.
        runtime: "torch", "onnx" or "openvino".
        stride: pixels per token.
        embed: embeds labels with the card's prompt templates.
        window_batch_size: windows to encode at once.
        size_step: sides of images must be multiples of it; 0: the card's resolution is the only size.
    """

    card: "ModelCard"
    device: Any
    runtime: str
    stride: int
    embed: "LabelEmbedder"
    window_batch_size: int
    size_step: int

    def encode_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d gh gw"]:
        """Return the unit-length tokens of RGB images."""
        ...

    def predict_logits(
        self, tokens: Float[np.ndarray, "n d gh gw"], text: Any, size: tuple[int, int] | None
    ) -> Float[np.ndarray, "n k h w"]:
        """Return the logits of embedded labels at `size`; None: at the network's resolution."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An encoded image, ready for any number of queries.

    Attributes:
        image: upright RGB.
        tokens: one grid of unit-length tokens per window, float32 or float16.
        grid: positions of the windows; None for tokens of the whole image.
        name: the image's file name, if it came from a file.
        options: the options it was encoded with.
        guide: guided filter of the image; None if logits are not filtered.
        extra_scale_tokens: tokens of the whole image at further sizes.
        crop_tokens: tokens of the crops of mode multicrop.
        logits_cache: label -> logits of the latest labels, at most `LOGITS_CACHE_BYTES`.
    """

    image: UInt8[np.ndarray, "h w 3"] = field(repr=False)
    tokens: Float[np.ndarray, "n d gh gw"] = field(repr=False)
    grid: WindowGrid | None = field(repr=False)
    name: str
    options: InferenceOptions
    guide: GuidedFilter | None = field(default=None, repr=False)
    extra_scale_tokens: tuple[Float[np.ndarray, "1 d gh2 gw2"], ...] = field(default=(), repr=False)
    crop_tokens: Float[np.ndarray, "crops d gh gw"] | None = field(default=None, repr=False)
    logits_cache: dict[str, Float[np.ndarray, "h w"]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, px."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def nbytes(self) -> int:
        """Upper bound of its memory: image, tokens and logits cache."""
        tokens = sum(tokens.nbytes for tokens in (self.tokens, *self.extra_scale_tokens))
        tokens += 0 if self.crop_tokens is None else self.crop_tokens.nbytes
        return self.image.nbytes + tokens + LOGITS_CACHE_BYTES

    def cache_logits(self, labels: Sequence[str], logits: dict[str, Float[np.ndarray, "h w"]]) -> None:
        """Cache the logits of the latest labels and drop the oldest ones."""
        capacity = LOGITS_CACHE_BYTES // logits[labels[0]].nbytes
        for label in labels[:capacity]:
            self.logits_cache.pop(label, None)
            self.logits_cache[label] = logits[label].copy()
        for label in list(self.logits_cache)[: max(0, len(self.logits_cache) - capacity)]:
            self.logits_cache.pop(label, None)  # another thread may have removed it


class Segmenter:
    """Segments images by free-form labels.

    `seg(image, labels)` segments one image; `seg.set_image(image)` followed by any number of `seg.segment(labels)`
    encodes the image once. Threads may share a segmenter and encoded images; `set_image` sets one image for all.

    Attributes:
        network, card: the network and its card.
        options: default options of all calls.
        auto_mode: the mode that "auto" stands for.
        overlap_blending: blend overlapping windows without seams; False lays them as the official code does, see
            `sliding_window`.
    """

    def __init__(self, network: Network) -> None:
        self.network, self.card = network, network.card
        self.options = DEFAULT_OPTIONS
        dense = self.card.config.similarity == "posterior"  # recognises small things better in crops
        self.auto_mode: Mode = "slide" if self.is_softmax else "multicrop" if dense else "whole"
        self.overlap_blending = True
        self._current: EncodedImage | None = None

    @classmethod
    def from_parts(
        cls,
        model: "Fusioner",
        image_encoder: "ImageEncoder",
        text_encoder: "TextEncoder",
        card: "ModelCard",
        device: "str | torch.device" = "cpu",
    ) -> Self:
        """Build a segmenter from a network and its encoders, which are moved to `device`.

        Raises:
            FusionerError: the network was trained on encoders of other widths, or there is no such device.
        """
        return cls(import_torch_network()(model, image_encoder, text_encoder, card, device))

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: "str | torch.device | None" = None,
        templates: Sequence[str] | str | None = None,
    ) -> Self:
        """Load a file of `fusioner train` and the encoders that its card names; `templates` replace the card's.

        Raises:
            FusionerError: the file is missing, corrupt or not a Fusioner model, or an encoder is not available.
        """
        return cls(import_torch_network().from_checkpoint(path, device, templates))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: "str | torch.device | None" = None,
    ) -> Self:
        """Load a folder of `save_pretrained` or the repository OWNER/NAME of the Hugging Face hub.

        Raises:
            FusionerError: it is not available, or an encoder that its card names is not.
        """
        from fusioner.hub import find_pretrained

        return cls.from_checkpoint(find_pretrained(source, revision, token), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the trained network, its configuration and a model card into a folder; return the folder.

        Raises:
            FusionerError: the folder cannot be written to, or the encoders are those of an official checkpoint.
        """
        from fusioner.hub import save_pretrained

        return save_pretrained(self, folder)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the files of `save_pretrained` to the hub's repository OWNER/NAME; return its address.

        Raises:
            FusionerError: an encoder is a local folder, or the hub cannot be reached or refuses the upload.
        """
        from fusioner.hub import push_to_hub

        return push_to_hub(self, repository, private=private, token=token)

    @property
    def embed(self) -> "LabelEmbedder":
        """The label embedder, which averages unit text embeddings over the prompt templates."""
        return self.network.embed

    @property
    def model(self) -> "Fusioner":
        """The trained network; not available for exported models."""
        return self._torch.model

    @property
    def image_encoder(self) -> "ImageEncoder":
        """The frozen image encoder; not available for exported models."""
        return self._torch.image_encoder

    @property
    def text_encoder(self) -> "TextEncoder":
        """The frozen text encoder; not available for exported models."""
        return self._torch.text_encoder

    @cached_property
    def _torch(self) -> Any:
        if hasattr(self.network, "model"):
            return self.network
        if self.network.folder is not None:  # type: ignore[attr-defined]
            raise FusionerError("this needs the model that was exported: load its .safetensors file")
        return import_torch_network().from_checkpoint(None, "cpu", self.network.embed.templates)

    @cached_property
    def model_id(self) -> dict[str, str]:
        """The encoders' names and the sha256 of card and prompt templates, by which results of models differ."""
        digest = hashlib.sha256(f"{self.card.to_json()}\n{list(self.embed.templates)}".encode()).hexdigest()
        return {"image_encoder": self.card.image_encoder, "text_encoder": self.card.text_encoder, "sha256": digest}

    @property
    def labels_independent(self) -> bool:
        """Whether a label's logits do not depend on the other labels (before `cap_surfaces`)."""
        return self.card.config.labels_independent and not self.is_softmax

    @property
    def is_softmax(self) -> bool:
        """Whether the labels compete by a softmax, as in pairs of encoders without training."""
        return self.card.config.method == "softmax"

    @cached_property
    def hierarchy(self) -> LabelHierarchy | SoftmaxNames:
        """Relations of labels to the trained classes (empty without a closed-set head), or their softmax."""
        if self.is_softmax:
            return SoftmaxNames(self.card.background, self.card.min_area)
        classes = self.card.training.get("classes", ()) if self.card.config.closed_set_classes else ()
        return LabelHierarchy(classes)

    def __repr__(self) -> str:
        card, device = self.card, self.network.device
        return f"<Segmenter of {card.image_encoder} and {card.text_encoder}, {card.resolution} px, on {device}>"

    @overload
    def __call__(
        self,
        image: ImageSource,
        labels: Sequence[str] | str,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        labels: Sequence[str] | str,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> list[Segmentation]: ...

    def __call__(
        self,
        image: Any,
        labels: Sequence[str] | str,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Segmentation | list[Segmentation]:
        """Segment `image` by `labels`; the image of `set_image` stays current.

        In mode slide every window is dropped once its logits are computed, so that images of any size fit.

        Args:
            image: anything `read_image` takes: a path, bytes, an open file, a Pillow image, an array or a torch tensor;
                or a list of them, which returns a list of results.
            labels: names, or one string of them separated by commas.
            options: default: the segmenter's.
            on_progress: see `OnProgress`; the whole image counts as one window.
            changes: single options, such as `mode="slide"`; see `InferenceOptions`.

        Raises:
            FusionerError: invalid image, labels or options, or not enough memory.
        """
        names, options = check_labels(labels), self.resolve(options, **changes)
        if isinstance(image, list | tuple):
            return [self(item, names, options, on_progress=on_progress) for item in image]
        if options.mode != "slide":
            encoded = self.encode(image, options, on_progress=on_progress)
            return self.decide(encoded, names, self.low_res_logits(encoded, names), options)
        rgb, name = read_image(image), _file_name(image)
        grid = self._grid(rgb, options)
        with _clear_memory_errors(name):
            logits = self._merge_windows(self._encode_windows(rgb, grid, on_progress), names, grid, rgb)
            return Segmentation.from_logits(rgb, names, logits, options, name=name, model=self.model_id)

    def set_image(
        self,
        image: ImageSource,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Self:
        """Encode `image` and make it current for `segment`."""
        self._current = self.encode(image, options, on_progress=on_progress, **changes)
        return self

    def segment(self, labels: Sequence[str] | str, **changes: Any) -> Segmentation:
        """Segment the current image by `labels`; `changes` are options of the decision, such as `threshold`."""
        if self._current is None:
            raise FusionerError("there is no current image: call set_image first")
        if fixed := sorted(set(changes) & set(ENCODING_OPTIONS)):
            raise FusionerError(f"options of the encoding ({', '.join(fixed)}) belong to set_image, not to segment")
        names = check_labels(labels)
        options = replace(self._current.options, **changes)
        return self.decide(self._current, names, self.low_res_logits(self._current, names), options)

    def resolve(self, options: InferenceOptions | None = None, **changes: Any) -> InferenceOptions:
        """Return the options (default: the segmenter's) with `changes` and the card's defaults.

        Raises:
            FusionerError: an option does not apply to the mode or to an exported model of one size.
        """
        options = replace(options or self.options, **changes)
        if options.mode == "auto":
            options = replace(options, mode=self.auto_mode)
        side = options.short_side or self.card.short_side
        if not self.network.size_step and (options.tta_scales != (1.0,) or side != self.card.short_side):
            raise FusionerError(
                f"this exported model takes images of {self.card.resolution} px only: omit tta-scales and short-side, "
                "or export it with more sizes"
            )
        filtered = self.card.guided_filter if options.guided_filter is None else options.guided_filter
        threshold = self.card.threshold if options.threshold is None else options.threshold
        options = replace(options, threshold=threshold, short_side=side or None)
        if options.mode == "slide":
            window, stride = options.window or self.card.resolution, options.stride or self.card.stride or None
            return replace(options, guided_filter=False, window=window, stride=stride)
        return replace(options, guided_filter=filtered)

    def encode(
        self,
        image: ImageSource,
        options: InferenceOptions | None = None,
        *,
        on_progress: OnProgress | None = None,
        scale: float = 1.0,
        **changes: Any,
    ) -> EncodedImage:
        """Read and encode an image for any number of queries; arguments and errors as of `__call__`.

        The tokens of all windows are kept, so mode slide refuses images above about 30 megapixels (bundled model),
        which calling the segmenter accepts. `scale` resizes the encoder's input: the whole image, or the image that
        the windows slide over.
        """
        options = self.resolve(options, **changes)
        rgb, name = read_image(image), _file_name(image)
        with _clear_memory_errors(name):
            if options.mode != "slide":
                return self._encode_whole(rgb, options, name, scale, on_progress)
            grid = self._grid(rgb, options, scale)
            tokens, done = None, 0
            for window_tokens, origins in self._encode_windows(rgb, grid, on_progress):
                if tokens is None:
                    tokens = _allocate_tokens(window_tokens, len(grid.origins), name)
                tokens[done : done + len(origins)] = window_tokens
                done += len(origins)
            assert tokens is not None
            return EncodedImage(rgb, tokens, grid, name, options)

    def _encode_whole(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        options: InferenceOptions,
        name: str,
        scale: float,
        on_progress: OnProgress | None,
    ) -> EncodedImage:
        """Encode the resized image and, in mode multicrop, its crops."""
        sizes = [self._whole_size(rgb, options, scale * tta_scale) for tta_scale in options.tta_scales]
        tokens = [self.network.encode_images(resize(rgb, size)[None]) for size in sizes]
        grid = self._crop_grid()
        count = len(grid.origins) if options.mode == "multicrop" else 0
        if on_progress:
            on_progress(1, 1 + count)
        encoded = self.wrap_tokens(rgb, tokens, options, name)
        if not count:
            return encoded
        crops = self._encode_windows(rgb, grid, lambda done, _: on_progress and on_progress(1 + done, 1 + count))
        return replace(encoded, crop_tokens=np.concatenate([tokens for tokens, _ in crops]))

    def encode_batch(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], options: InferenceOptions | None = None
    ) -> list[EncodedImage]:
        """Encode upright RGB images of any sizes, in one forward pass where mode whole resizes them to squares."""
        options = self.resolve(options)
        if options.mode != "whole" or options.short_side:
            return [self.encode(rgb, options) for rgb in images]
        with _clear_memory_errors(f"{len(images)} images"):
            sides = [self.side(scale) for scale in options.tta_scales]
            batches = [
                self.network.encode_images(np.stack([resize(rgb, (side, side)) for rgb in images])) for side in sides
            ]
        tokens = ([batch[i : i + 1].copy(order="K") for batch in batches] for i in range(len(images)))
        return [self.wrap_tokens(rgb, own, options) for rgb, own in zip(images, tokens, strict=True)]

    def wrap_tokens(
        self,
        rgb: UInt8[np.ndarray, "h w 3"],
        tokens: Sequence[Float[np.ndarray, "1 d _ _"]],
        options: InferenceOptions | None = None,
        name: str = "image",
    ) -> EncodedImage:
        """Return an encoded image of given tokens of the whole image, one grid per scale."""
        options = self.resolve(options)
        guide = None
        if options.guided_filter:
            small = resize(rgb, (GUIDE_SIZE, GUIDE_SIZE))
            guide = GuidedFilter(small.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        return EncodedImage(rgb, tokens[0], None, name, options, guide, tuple(tokens[1:]))

    def side(self, scale: float = 1.0) -> int:
        """Return the side in pixels of the resized image: a multiple of the stride, the training size at scale 1."""
        resolution, stride, step = self.card.resolution, self.network.stride, self.network.size_step
        side = resolution if scale == 1.0 else max(1, round(resolution * scale / stride)) * stride
        return max(1, round(side / step)) * step if step else resolution

    def _whole_size(self, rgb: UInt8[np.ndarray, "h w 3"], options: InferenceOptions, scale: float) -> tuple[int, int]:
        """Return the height and width of the resized image of mode whole: multiples of the stride."""
        if not options.short_side or not self.network.size_step:
            return self.side(scale), self.side(scale)
        step = math.lcm(self.network.stride, self.network.size_step)
        height, width = (max(1, round(scale * side / step)) * step for side in _short_size(rgb, options.short_side))
        return height, width

    def logits(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "k H W"]:
        """Return all labels' logits at `size` (height, width; default: the image's size)."""
        return upsample(self.low_res_logits(encoded, labels), size or encoded.size)

    def probabilities(
        self, encoded: EncodedImage, labels: Sequence[str], size: tuple[int, int] | None = None
    ) -> Float[np.ndarray, "k H W"]:
        """Return the sigmoid of `logits`; labels are independent, so the values do not sum to 1."""
        return np.concatenate(list(iter_probabilities(self.low_res_logits(encoded, labels), size or encoded.size)))

    def low_res_logits(self, encoded: EncodedImage, labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Return logits at the network's resolution, or merged over the windows (mode slide).

        The merged logits have the image's size, less if labels times pixels exceed `MAX_CANVAS_SIZE`.

        Raises:
            FusionerError: not enough memory, or NaN or Inf logits (a corrupt checkpoint).
        """
        with _clear_memory_errors(encoded.name):
            if encoded.grid is not None:
                windows = [(encoded.tokens, encoded.grid.origins)]
                return self._merge_windows(windows, labels, encoded.grid, encoded.image)
            cached = dict(encoded.logits_cache) if self.labels_independent else {}
            new = [label for label in labels if label not in cached]
            if new:
                names = self.hierarchy.expand(new)
                scales = []
                for tokens in (encoded.tokens, *encoded.extra_scale_tokens):
                    scales += [self._forward_chunked(tokens, names, None)[0]]
                if encoded.crop_tokens is not None:
                    scales = [self._add_crops(mean_logits(scales), encoded.crop_tokens, names)]
                logits = self._reduce(mean_logits(scales), new, encoded.image)
                logits = logits if encoded.guide is None else encoded.guide(logits)
                if not self.labels_independent:
                    return logits
                cached = cached | dict(zip(new, logits, strict=True))
            encoded.cache_logits(labels, cached)
            return self._cap_surfaces(np.stack([cached[label] for label in labels]), labels)

    def decide(
        self,
        encoded: EncodedImage,
        labels: Sequence[str],
        logits: Float[np.ndarray, "k h w"],
        options: InferenceOptions | None = None,
    ) -> Segmentation:
        """Return the result of `low_res_logits`; options of the encoding are those that the image was encoded with."""
        options = replace(self.resolve(options), **{name: getattr(encoded.options, name) for name in ENCODING_OPTIONS})
        with _clear_memory_errors(encoded.name):
            image, name = encoded.image, encoded.name
            return Segmentation.from_logits(image, labels, logits, options, name=name, model=self.model_id)

    def _reduce(
        self, logits: Float[np.ndarray, "n h w"], labels: Sequence[str], image: UInt8[np.ndarray, "H W 3"]
    ) -> Float[np.ndarray, "k h2 w2"]:
        """Reduce all names' logits to the labels'; compute a softmax at the image's size, coarser for many names."""
        logits = _check_finite(logits)
        if self.is_softmax:
            size = image.shape[:2]
            scale = min(1.0, math.sqrt(MAX_FEATURE_SIZE / (len(logits) * math.prod(size))))
            size = (max(1, int(size[0] * scale)), max(1, int(size[1] * scale)))
            logits = upsample(logits, size)
            if self.card.pamr:
                logits = refine_by_pixels(logits, resize(image, size), self.card.pamr)
        return self.hierarchy.reduce(logits, labels)

    def _cap_surfaces(self, logits: Float[np.ndarray, "k h w"], labels: Sequence[str]) -> Float[np.ndarray, "k h w"]:
        """Apply `labels.cap_surfaces` if the model has a closed-set head and independent labels."""
        trained = self.labels_independent and self.card.config.closed_set_classes
        return cap_surfaces(logits, labels) if trained else logits

    def _grid(self, rgb: UInt8[np.ndarray, "h w 3"], options: InferenceOptions, scale: float = 1.0) -> WindowGrid:
        size = _short_size(rgb, options.short_side) if options.short_side else rgb.shape[:2]
        height, width = (max(1, round(side * scale)) for side in size)
        window = options.window or self.card.resolution
        if window != self.card.resolution and (not self.network.size_step or window % self.network.size_step):
            raise FusionerError(
                f"the windows of this model are {self.card.resolution} px or a multiple of "
                f"{self.network.size_step or self.card.resolution} px, not {window}"
            )
        smooth = self.overlap_blending or self.is_softmax
        return WindowGrid(height, width, window, options.stride or 0, smooth=smooth, even=self.is_softmax)

    def _encode_windows(
        self, rgb: UInt8[np.ndarray, "h w 3"], grid: WindowGrid, on_progress: OnProgress | None
    ) -> Iterator[tuple[Float[np.ndarray, "n d gh gw"], list[Origin]]]:
        """Yield the tokens and origins of a few windows at a time."""
        if rgb.shape[:2] != (grid.height, grid.width):
            rgb = resize(rgb, (grid.height, grid.width))
        origins, step = grid.origins, self.network.window_batch_size
        for start in range(0, len(origins), step):
            batch = origins[start : start + step]
            yield self.network.encode_images(grid.cut(rgb, batch)), batch
            if on_progress:
                on_progress(start + len(batch), len(origins))

    def _merge_windows(
        self,
        windows: Iterable[tuple[Float[np.ndarray, "n d gh gw"], list[Origin]]],
        labels: Sequence[str],
        grid: WindowGrid,
        image: UInt8[np.ndarray, "H W 3"],
    ) -> Float[np.ndarray, "k h w"]:
        """Average the logits of all windows of an image."""
        names = self.hierarchy.expand(labels)
        scale = math.sqrt(MAX_CANVAS_SIZE / (len(names) * grid.height * grid.width))
        side = grid.crop if scale >= 1 else max(1, int(grid.crop * scale))
        canvas = Canvas(grid, side)
        step = max(1, min(8, MAX_FEATURE_SIZE // (max(self.card.config.decoder_widths) * side**2)))
        for tokens, origins in windows:
            for start in range(0, len(origins), step):
                logits = self._forward_chunked(tokens[start : start + step], names, (side, side))
                for window_logits, origin in zip(logits, origins[start : start + step], strict=True):
                    canvas.add(window_logits, origin)
        return self._cap_surfaces(self._reduce(canvas.mean(), labels, image), labels)

    def _crop_grid(self) -> WindowGrid:
        """Return the positions of the crops in the image resized by `CROP_SCALE`."""
        crop = self.card.resolution
        side = round(crop * CROP_SCALE)
        return WindowGrid(side, side, crop, max(1, side - crop), smooth=True)

    def _add_crops(
        self, whole: Float[np.ndarray, "k h w"], tokens: Float[np.ndarray, "n d gh gw"], names: Sequence[str]
    ) -> Float[np.ndarray, "k h2 w2"]:
        """Average the logits of the whole image and of its crops.

        Names that the whole image makes likely nowhere keep its logits (docs/lab-notes/inference.md#multicrop); this is
        decided for each name by itself.
        """
        likely = [i for i, logits in enumerate(whole) if not self.labels_independent or logits.max() >= MIN_CROP_LOGIT]
        grid = self._crop_grid()
        canvas = Canvas(grid, tokens.shape[-1] * self.card.config.decoder_scale)
        height, width = (max(sides) for sides in zip(whole.shape[1:], canvas.size, strict=True))
        mean = upsample(whole, (height, width))
        if likely:
            crops = self._forward_chunked(tokens, [names[i] for i in likely], None)
            for logits, origin in zip(crops, grid.origins, strict=True):
                canvas.add(logits, origin)
            mean[likely] = mean_logits([mean[likely], canvas.mean()])
        return mean

    def _forward_chunked(
        self, tokens: Float[np.ndarray, "n d gh gw"], labels: Sequence[str], size: tuple[int, int] | None
    ) -> Float[np.ndarray, "n k h w"]:
        """Run the network on as many labels at a time as `MAX_FEATURE_SIZE` allows, if labels are independent."""
        text, config = self.network.embed(labels), self.card.config
        tokens = tokens.astype(np.float32, copy=False)
        chunk = len(labels)
        if config.labels_independent:  # every label has its own tokens and features
            n = math.prod(tokens.shape[2:])
            cells = math.prod(size) if size else n * config.decoder_scale**2
            values = max(config.decoder_widths) * cells + int(n * config.width * (config.mlp_ratio + 4))
            values += config.heads * n**2  # attention, where it is not fused
            low_res_on_cpu = size is None and str(self.network.device) == "cpu"
            limit = MAX_FEATURE_SIZE_CPU if low_res_on_cpu else MAX_FEATURE_SIZE
            chunk = max(1, limit // (values * len(tokens)))
        parts = []
        for start in range(0, len(labels), chunk):
            parts += [self.network.predict_logits(tokens, text[start : start + chunk], size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def import_torch_network() -> "type[TorchNetwork]":
    """Return `TorchNetwork`, whose module imports torch; FusionerError where a package is missing."""
    try:
        from fusioner.torch_network import TorchNetwork
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    return TorchNetwork


def _short_size(rgb: UInt8[np.ndarray, "h w 3"], short_side: int) -> tuple[int, int]:
    """Return (height, width) at which the shorter side is `short_side`, the longer at most `MAX_LONG_SIDE`."""
    height, width = rgb.shape[:2]
    ratio = min(short_side / min(height, width), MAX_LONG_SIDE / max(height, width))
    return max(1, int(height * ratio + 0.5)), max(1, int(width * ratio + 0.5))


def _file_name(image: ImageSource) -> str:
    path = image if isinstance(image, str | Path) else getattr(image, "filename", None) or getattr(image, "name", None)
    return (Path(path).name if isinstance(path, str | Path) else "") or "image"


@contextmanager
def _clear_memory_errors(name: str) -> Iterator[None]:
    """Turn memory errors into a FusionerError that names the image."""
    try:
        yield
    except Exception as error:
        is_memory_error = any(words in str(error) for words in ("allocate memory", "out of memory"))
        if not isinstance(error, MemoryError) and not is_memory_error:
            raise
        raise FusionerError(f"not enough memory for {name}: use fewer labels, a smaller image or mode whole") from error


def _allocate_tokens(
    tokens: Float[np.ndarray, "n d gh gw"], windows: int, name: str
) -> Float[np.ndarray, "windows d gh gw"]:
    """Allocate the tokens of all windows, in float16 above `MAX_TOKEN_BYTES`; FusionerError above twice that."""
    needed = windows * tokens[0].nbytes
    if needed > 2 * MAX_TOKEN_BYTES:
        raise FusionerError(f"{name} is too large to encode in mode slide: use mode whole")
    return np.empty((windows, *tokens.shape[1:]), np.float16 if needed > MAX_TOKEN_BYTES else np.float32)


def _check_finite(logits: Float[np.ndarray, "k h w"]) -> Float[np.ndarray, "k h w"]:
    if not math.isfinite(logits.sum()):  # one number: isfinite of the array would take as much memory again
        raise FusionerError("the model produced NaN or Inf logits: the checkpoint is corrupt")
    return logits
