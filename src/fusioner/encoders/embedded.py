"""The two transformers that ship inside the package and need no network: DINOv2 ViT-S/14 (blocks 0-9) and MiniLM.

`fusioner/weights/README.md` is their card; `tools/build_weights.py` rebuilds their files. Stored in fp16, run in fp32.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fusioner.encoders.base import Frozen
from fusioner.errors import FusionerError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def dinov2_s_embedded() -> "EmbeddedDinov2":
    """The zoo's `dinov2-s-embedded`; FusionerError when the installation lacks its weights."""
    return EmbeddedDinov2(read_weights("dinov2_s.safetensors"))


def minilm_embedded() -> "MiniLM":
    """The zoo's `minilm-embedded`; FusionerError when the installation lacks its weights."""
    tokenizer = weights_file("minilm.tokenizer.json").read_text(encoding="utf-8")
    return MiniLM(read_weights("minilm.safetensors"), tokenizer)


class EmbeddedDinov2(Frozen):
    """DINOv2 ViT-S/14 up to block 9: RGB in [0, 1] -> (B, 384, H // 14, W // 14) unit-length tokens.

    A token is the output of block 9 through a LayerNorm without weights (the trained one belongs to block 11). The
    37 x 37 position grid is interpolated to the image's own grid, H != W too. A side that is no multiple of 14 is
    resized to the multiple below, so that the tokens always span the whole image.
    """

    name = "dinov2-s-embedded"
    dim = 384
    stride = 14

    def __init__(self, state: Mapping[str, Tensor]):
        from transformers import Dinov2Config, Dinov2Model

        super().__init__()
        self.mean, self.std = IMAGENET_MEAN, IMAGENET_STD
        config = Dinov2Config(
            hidden_size=384,
            num_hidden_layers=10,
            num_attention_heads=6,
            image_size=518,  # 37 x 37 positions
            patch_size=14,
            use_mask_token=False,
            layer_norm_eps=1e-6,
        )
        self.model = load_strictly(Dinov2Model, config, state)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 384 gh gw"]:
        """Tokens of each image; FusionerError for images smaller than one patch."""
        gh, gw = grid_size(images, self.stride)
        pixels = normalise(fit(images, (gh * self.stride, gw * self.stride)), self.mean, self.std)
        hidden = self.model(pixel_values=pixels).last_hidden_state  # (B, 1 + Gh*Gw, 384), the class token first
        return F.normalize(hidden[:, 1:], dim=-1).transpose(1, 2).unflatten(2, (gh, gw))

    def fingerprint(self) -> str:
        """Sha256 of the weights and the normalisation."""
        return fingerprint(self, self.name, repr((tuple(self.mean), tuple(self.std))))


class MiniLM(Frozen):
    """all-MiniLM-L6-v2: strings -> (N, 384) unit vectors, mean-pooled over each string's own word pieces.

    Trained on English: other languages share only what they spell alike. What goes past 256 word pieces is cut.
    """

    name = "minilm-embedded"
    dim = 384
    batch = 128  # strings encoded at once

    def __init__(self, state: Mapping[str, Tensor], tokenizer: str):
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        self.model = load_strictly(BertModel, config, state, add_pooling_layer=False)
        self.vocabulary = tokenizer
        self.tokenizer = Tokenizer.from_str(tokenizer)
        self.tokenizer.enable_truncation(256)  # the sentence model's limit; the file says 128
        self.tokenizer.enable_padding()  # to the longest of a batch; the file pads all to 128
        self.freeze()

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n 384"]:
        """One unit vector a string, in the order given; none for no strings."""
        parts = [self._encode(texts[i : i + self.batch]) for i in range(0, len(texts), self.batch)]
        weight = self.model.embeddings.word_embeddings.weight
        return torch.cat(parts) if parts else weight.new_zeros(0, self.dim)

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n 384"]:
        encodings = self.tokenizer.encode_batch(list(texts))
        device = self.model.device
        ids = torch.tensor([one.ids for one in encodings], device=device)  # (N, L)
        mask = torch.tensor([one.attention_mask for one in encodings], device=device)  # (N, L), 1 = a real piece
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, L, 384)
        # A mean and a sum over real pieces differ by a factor only, which the unit length removes.
        return F.normalize((hidden * mask[..., None]).sum(dim=1), dim=-1)

    def fingerprint(self) -> str:
        """Sha256 of the weights and the tokenizer."""
        return fingerprint(self, self.name, self.vocabulary)


def weights_file(name: str) -> Path:
    """Path of a file shipped in `fusioner.weights`; FusionerError when the installation lacks it."""
    path = Path(str(resources.files("fusioner.weights"))) / name
    if not path.is_file():
        raise FusionerError(f"the embedded file {path} is missing: reinstall fusioner or run tools/build_weights.py")
    return path


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped safetensors file, in fp32; FusionerError when it is missing or broken."""
    path = weights_file(name)
    try:
        return {key: tensor.float() for key, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise FusionerError(f"the embedded file {path} is broken ({error}): reinstall fusioner") from error


def load_strictly(kind: Any, config: Any, state: Mapping[str, Tensor], **options: Any) -> Any:
    """A transformers model with exactly these weights; FusionerError unless every key is there, known and in shape.

    Through `from_pretrained`, which maps the published key names onto the installed version's own.
    """
    with _no_progress_bar():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, **options
        )
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"], *(str(one) for one in info["mismatched_keys"])})
    if wrong:
        raise FusionerError(f"the weights do not fit {kind.__name__}: {', '.join(wrong[:5])}")
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence transformers' loading bar, and leave the user's setting as it was."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def grid_size(images: Float[Tensor, "b 3 h w"], stride: int) -> tuple[int, int]:
    """Tokens along (height, width); FusionerError when the image is smaller than one token."""
    h, w = images.shape[-2:]
    if min(h, w) < stride:
        raise FusionerError(f"an image of {w} x {h} pixels is too small: this encoder needs {stride} on each side")
    return h // stride, w // stride


def fit(images: Float[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 h2 w2"]:
    """Bilinear resize with antialiasing; nothing when the size is right already."""
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def normalise(
    images: Float[Tensor, "b 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "b 3 h w"]:
    """Subtract the mean and divide by the deviation, a channel each (on RGB in [0, 1])."""
    channels = images.new_tensor([mean, std])[:, :, None, None]  # (2, 3, 1, 1)
    return (images - channels[0]) / channels[1]


def fingerprint(module: nn.Module, *settings: str) -> str:
    """Sha256 (hex) over a module's parameters and buffers, by name, and over settings that shape its output."""
    total = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        total.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().numpy())
    for setting in settings:
        total.update(hashlib.sha256(setting.encode()).digest())
    return total.hexdigest()
