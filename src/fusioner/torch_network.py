"""The network behind a `Segmenter` in torch: frozen encoders and the trained fusion network."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fusioner.device import pick_device
from fusioner.encoders.base import PUBLISHED_NORMALISATION, ImageEncoder, TextEncoder
from fusioner.encoders.prompt_templates import IMAGENET, LabelEmbedder, check_templates, read_templates
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.encoders.training_free import BACKGROUND_NAMES, THRESHOLD, build_pair, published_protocol
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import ModelCard, load_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner
from fusioner.model.similarity import ImageFeatures
from fusioner.weights import DEFAULT_MODEL, weights_file

CACHED_IMAGES = 4  # whose label-independent features are kept


class TorchNetwork:
    """Frozen encoders and trained network; see `segmenter.Network`."""

    runtime = "torch"

    def __init__(
        self,
        model: Fusioner,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        card: ModelCard,
        device: str | torch.device | None = "cpu",
        templates: Sequence[str] | str | None = None,
    ) -> None:
        """Move all parts to `device`; `templates` replace the card's.

        Raises:
            FusionerError: the network was trained on encoders of other widths, or there is no such device.
        """
        self.device = pick_device(device)
        config = model.config
        _check_width("image", image_encoder, config.image_dim + config.similarity_dim)
        _check_width("text", text_encoder, config.text_dim)
        self.model = model.to(self.device).eval()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.card = card if templates is None else replace(card, templates=check_templates(templates))
        for encoder in (image_encoder, text_encoder):
            if isinstance(encoder, nn.Module):
                encoder.to(self.device)
        self.embed = LabelEmbedder(text_encoder, self.card.templates)
        self.stride, self.size_step = image_encoder.stride, 1
        self.window_batch_size = 1 if self.device.type == "cpu" else 8
        self._features: list[tuple[Float[np.ndarray, "n d gh gw"], Tensor, ImageFeatures | None]] = []

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | None,
        device: str | torch.device | None = None,
        templates: Sequence[str] | str | None = None,
    ) -> Self:
        """Load a file of `fusioner train` (default: the bundled model) and the encoders that its card names."""
        device = pick_device(device)
        model, card = load_model(weights_file(DEFAULT_MODEL) if path is None else path)
        image_encoder, text_encoder = build_image_encoder(card.image_encoder), build_text_encoder(card.text_encoder)
        image_encoder.mean, image_encoder.std = card.mean or image_encoder.mean, card.std or image_encoder.std
        return cls(model, image_encoder, text_encoder, card, device, templates)

    @classmethod
    def from_encoders(
        cls,
        image_encoder: str,
        text_encoder: str | None = None,
        device: str | torch.device | None = None,
        templates: Sequence[str] | str | None = None,
        background: Sequence[str] | None = None,
    ) -> Self:
        """Build an untrained network: cosines of aligned encoders and a softmax over the names.

        See `encoders.training_free.build_pair`; `background`: names that compete with the labels (default: SCLIP's).
        """
        device = pick_device(device)
        image, text = build_pair(image_encoder, text_encoder)
        protocol = published_protocol(image.name, image.image_size)
        temperature = 1 / protocol.scale
        config = FusionerConfig(
            image_dim=0,
            text_dim=text.dim,
            method="softmax",
            similarity="cosine",
            similarity_dim=image.dim,
            temperature=temperature,
        )
        card = ModelCard(
            config,
            image.name,
            text.name,
            protocol.window,
            read_templates(IMAGENET),
            threshold=THRESHOLD,
            short_side=protocol.short_side,
            stride=protocol.stride,
            background=BACKGROUND_NAMES if background is None else tuple(background),
        )
        return cls(Fusioner(config), image, text, card, device, templates)

    @classmethod
    def from_official(
        cls, path: str | Path, device: str | torch.device | None, templates: Sequence[str] | str | None, dataset: str
    ) -> Self:
        """Load an official checkpoint with the published normalisation of `dataset`."""
        from fusioner.model.official_checkpoint import load_official

        dataset = dataset if dataset in PUBLISHED_NORMALISATION else "pascal"
        model, image_encoder, text_encoder, card = load_official(path, dataset=dataset)
        return cls(model, image_encoder, text_encoder, card, device, templates)

    @torch.inference_mode()
    def encode_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n d gh gw"]:
        """Encode RGB images into unit-length tokens, see `Network.encode_images`."""
        pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)
        pixels = pixels.contiguous().to(self.device).float().div_(255)
        # The encoder is nearly all of the work; fusion and decoding stay in float32 for the precision of the logits.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.image_encoder(pixels).float().cpu().numpy()

    @torch.inference_mode()
    def predict_logits(
        self, tokens: Float[np.ndarray, "n d gh gw"], text: Float[Tensor, "k dt"], size: tuple[int, int] | None
    ) -> Float[np.ndarray, "n k h w"]:
        """Predict logits, see `Network.predict_logits`; label-independent features of the latest images are cached."""
        cached = next((entry for entry in self._features if entry[0] is tokens), None)
        if cached is None:
            on_device = torch.from_numpy(tokens).to(self.device)
            cached = tokens, on_device, self.model.encode_image(on_device)
            self._features = [*self._features, cached][-CACHED_IMAGES:]
        _, on_device, features = cached
        text = text.to(self.device).expand(len(tokens), -1, -1)
        return self.model(on_device, text, size, features=features).cpu().numpy()


def _check_width(kind: str, encoder: ImageEncoder | TextEncoder, expected: int) -> None:
    if encoder.dim != expected:
        raise FusionerError(
            f"the model was trained on {kind} vectors of width {expected}, encoder '{encoder.name}' gives "
            f"{encoder.dim}: use the encoder it was trained with"
        )
