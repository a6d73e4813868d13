"""An ImageNet classifier as a text-aligned dense encoder: class posteriors, and the embeddings of the class names.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, arXiv 1312.5650),
applied at every position instead of once per image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fusioner.encoders.base import HALF, DenseEncoder, Hypernyms, state_digest
from fusioner.encoders.bundled import read_weights
from fusioner.encoders.efficientnet import load_effnet
from fusioner.weights import weights_file


@dataclass(frozen=True)
class ClassName:
    """An ImageNet class: WordNet id, synonyms (the commonest first) and WordNet's definition."""

    synset: str
    synonyms: tuple[str, ...]
    definition: str


@dataclass(frozen=True)
class Hypernym:
    """A WordNet hypernym, and the indices of the classes below it."""

    name: ClassName
    classes: tuple[int, ...]


def parse_names(text: str) -> list[ClassName]:
    """Parse `imagenet_names.tsv`: one class per line, in the classifier's order."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [ClassName(synset, tuple(synonyms.split(", ")), definition) for synset, synonyms, definition in rows]


def parse_hypernyms(text: str) -> list[Hypernym]:
    """Parse `imagenet_kinds.tsv`: the columns of `imagenet_names.tsv`, then class indices separated by commas."""
    rows = [line.rpartition("\t") for line in text.splitlines()]
    return [Hypernym(parse_names(name)[0], tuple(map(int, classes.split(",")))) for name, _, classes in rows]


class Posteriors(DenseEncoder):
    """EfficientNet-Lite2 as a dense classifier: (B, 1000, H // 14, W // 14) posteriors, scaled to unit length.

    Divide a token by its sum to recover the posterior. `class_embeddings` (1000, 384) are the unit MiniLM embeddings of
    the class names. The image is enlarged by output_stride / stride, as the network was trained on objects that fill
    the frame, and shifted so that each position is centred on its cell rather than on the cell's far corner.
    """

    name, dim, stride = "effnet-lite2", 1000, 14
    output_stride: Literal[16, 32] = 16
    variants: ClassVar[Mapping[str, int]] = {"synonyms": 1, "defined": 2, "worn": 2}
    """Ways of writing the class names (keys of `imagenet_anchors.safetensors`), and their weights in the embedding."""

    class_embeddings: Float[Tensor, "k d"]

    def __init__(self) -> None:
        super().__init__(self.name, self.dim, self.stride, HALF, HALF)
        self.network = load_effnet(read_weights("effnet_lite2.safetensors"), self.output_stride)
        written = read_weights("imagenet_anchors.safetensors")
        unit = {variant: F.normalize(written[variant], dim=1) for variant in self.variants}
        total = sum((self.variants[variant] * unit[variant] for variant in unit), torch.zeros(()))
        self.class_embeddings = F.normalize(total, dim=1)
        self.freeze()

    def hypernyms(self) -> Hypernyms:
        """Load the classes' WordNet hypernyms: embeddings (860, 384), indices (1000, 19)."""
        parsed = parse_hypernyms(weights_file("imagenet_kinds.tsv").read_text(encoding="utf-8"))
        of_class: list[list[int]] = [[] for _ in self.class_embeddings]
        for index, hypernym in enumerate(parsed):
            for row in hypernym.classes:
                of_class[row].append(index)
        depth = max(map(len, of_class))
        padded = torch.tensor([row + [len(parsed)] * (depth - len(row)) for row in of_class])
        return Hypernyms(read_weights("imagenet_kinds.safetensors")["kinds"], padded)

    def settings(self) -> dict[str, Any]:
        return {"temperature": 1.0, "topk": 0, "output_stride": self.output_stride, "centre": True}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k gh gw"]:
        return self.logits(pixels).softmax(dim=1)

    def logits(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000 gh gw"]:
        """Compute class logits on the token grid, from normalised pixels whose sides are multiples of the stride."""
        gh, gw = (side // self.stride for side in pixels.shape[-2:])
        size = (gh * self.output_stride, gw * self.output_stride)
        offset = self.output_stride // 2  # moves the centre of position i to that of its cell
        # Up to a multiple of 32, so that every strided layer pads as on even sides. Written so that torch.export can
        # prove it.
        right, bottom = ((side + offset + 31) // 32 * 32 - side - offset for side in (size[1], size[0]))
        pixels = F.pad(_enlarge(pixels, size), (offset, right, offset, bottom))
        return self.network(pixels)[..., :gh, :gw]


class ConSE(Posteriors):
    """EfficientNet-Lite2's posteriors in MiniLM's space: (B, 384, H // 24, W // 24) unit-length tokens.

    token = sum over classes of p(class | position) * class_embedding(class), scaled to unit length. Any label has some
    cosine with any token, so compare it with the cosines of all `class_embeddings` (a z-score).
    """

    name, dim, stride = "effnet-lite2-conse", 384, 24
    output_stride = 32
    variants: ClassVar = {"synonyms": 1}
    text_aligned = True

    def settings(self) -> dict[str, Any]:
        embeddings = torch.nn.ParameterDict({"anchors": self.class_embeddings})
        return super().settings() | {"anchors": state_digest(embeddings, "synonyms")}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return torch.einsum("bkhw,kd->bdhw", super().tokens(pixels), self.class_embeddings)


def _enlarge(pixels: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Resize bilinearly.

    Exported graphs compute sample positions in integers: runtimes round float32 positions differently from torch, which
    changes the posterior's fifth digit.
    """
    if not torch.compiler.is_exporting():
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    for axis, new in zip((2, 3), size, strict=True):
        last, unit = pixels.shape[axis] - 1, 2 * new
        centres = 2 * torch.arange(new, device=pixels.device) + 1
        position = (centres * (last + 1) - new).clamp(0, unit * last)  # in units of 1 / unit
        index = position // unit
        fraction = (position - index * unit).to(pixels.dtype) / unit
        left, right = (pixels.index_select(axis, (index + step).clamp(max=last)) for step in (0, 1))
        pixels = left + (right - left) * (fraction[:, None] if axis == 2 else fraction)
    return pixels
