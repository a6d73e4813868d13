"""The one object that segments in torch: encoders, trained network and card together.

Letters: N windows (1 when the whole image is one), D channels, Gh Gw token grid, K labels, h w the network's own
resolution.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, from_numpy, nn

from fusioner.base_segmenter import BaseSegmenter, OnProgress
from fusioner.device import pick_device
from fusioner.encoded_image import EncodedImage
from fusioner.encoders.base import ImageEncoder, TextEncoder
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.errors import FusionerError
from fusioner.image import resize, resize_square
from fusioner.model.checkpoint import load_model
from fusioner.model.fusioner import Fusioner
from fusioner.model.metadata import ModelCard
from fusioner.model.similarity import Seen

__all__ = ["EncodedImage", "OnProgress", "Segmenter"]


class Segmenter(BaseSegmenter):
    """Segments in torch; what can be asked of it, and its other attributes, are those of `BaseSegmenter`.

    Attributes:
        model, image_encoder, text_encoder, device: what it is made of, and where it computes.
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
        super().__init__()
        self.device = pick_device(device)
        self.some = 1 if self.device.type == "cpu" else 8
        config = model.config
        _check_width("image", image_encoder, config.image_dim + config.aligned_dim)
        _check_width("text", text_encoder, config.text_dim)
        self.model = model.to(self.device).eval()
        self.image_encoder, self.text_encoder, self.card = image_encoder, text_encoder, card
        for encoder in (image_encoder, text_encoder):
            if isinstance(encoder, nn.Module):
                encoder.to(self.device)
        self.embed, self.stride = LabelEmbedder(text_encoder, card.templates), image_encoder.stride
        self._looked: list[tuple[Tensor, Seen | None]] = []

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str | torch.device | None = None, templates: Sequence[str] | None = None
    ) -> "Segmenter":
        """Load a file of `fusioner train` and the encoders its card names; `templates` replace the card's.

        Raises:
            FusionerError: the file is missing, damaged or foreign, or an encoder cannot be had.
        """
        from fusioner.encoders.registry import build_image_encoder, build_text_encoder

        chosen = pick_device(device)
        model, card = load_model(path)
        image_encoder, text_encoder = build_image_encoder(card.image_encoder), build_text_encoder(card.text_encoder)
        image_encoder.mean, image_encoder.std = card.mean or image_encoder.mean, card.std or image_encoder.std
        segmenter = cls(model, image_encoder, text_encoder, card, chosen)
        if templates is not None:
            segmenter.embed = LabelEmbedder(text_encoder, templates)
        return segmenter

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        device: str | torch.device | None = None,
    ) -> "Segmenter":
        """Load a folder of `save_pretrained`, or the repository OWNER/NAME of the Hugging Face hub.

        Raises:
            FusionerError: it cannot be had, or an encoder that it names cannot.
        """
        from fusioner.hub import find_pretrained

        return cls.from_checkpoint(find_pretrained(source, revision, token), device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the trained network, its configuration and a model card into a folder -> the folder.

        Raises:
            FusionerError: the folder cannot be written to.
        """
        from fusioner.hub import save_pretrained

        return save_pretrained(self, folder)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload what `save_pretrained` writes to the hub's repository OWNER/NAME, made where missing -> its address.

        Raises:
            FusionerError: an encoder is named by a folder of this machine, the hub cannot be reached, or it refuses.
        """
        from fusioner.hub import push_to_hub

        return push_to_hub(self, repository, private=private, token=token)

    @contextmanager
    def _computing(self, name: str) -> Iterator[None]:
        with torch.inference_mode(), super()._computing(name):
            yield

    def _squash(self, rgb: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Tensor, "3 side side"]:
        return resize_square(rgb, side)

    def _pixels(self, rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "1 3 h2 w2"]:
        return resize(from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1)[None], size)

    def _tokens(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d gh gw"]:
        # The encoder is nearly all of the work; fusion and decoding stay in float32, where logits keep their precision.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.image_encoder(images.to(self.device)).float()

    def _answer(
        self, tokens: Float[Tensor, "n d gh gw"], text: Float[Tensor, "k dt"], size: tuple[int, int] | None
    ) -> Float[Tensor, "n k h w"]:
        text = text.to(self.device).expand(len(tokens), -1, -1)
        for known, seen in self._looked:  # asked again and again of one image, mostly
            if known is tokens:
                return self.model(tokens, text, size, seen=seen)
        seen = self.model.look(tokens)
        self._looked = [*self._looked, (tokens, seen)][-4:]
        return self.model(tokens, text, size, seen=seen)


def _check_width(kind: str, encoder: ImageEncoder | TextEncoder, expected: int) -> None:
    if encoder.dim != expected:
        raise FusionerError(
            f"the model was trained on {kind} vectors of width {expected}, encoder '{encoder.name}' gives "
            f"{encoder.dim}: use the encoder it was trained with"
        )
