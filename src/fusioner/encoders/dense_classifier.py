"""An ImageNet classifier as a text-aligned dense encoder: class posteriors, and the embeddings of the class names.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, arXiv 1312.5650),
applied at every position instead of once per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fusioner.encoders.base import Hypernyms, state_digest
from fusioner.encoders.bundled import read_weights, weights_file
from fusioner.encoders.efficientnet import load_effnet
from fusioner.encoders.image import HALF, DenseEncoder
from fusioner.errors import FusionerError


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


def hypernyms_of_classes(hypernyms: Sequence[Hypernym], classes: int) -> Int[Tensor, "k depth"]:
    """Return the indices of each class's hypernyms, padded with their number."""
    of_class: list[list[int]] = [[] for _ in range(classes)]
    for index, hypernym in enumerate(hypernyms):
        for row in hypernym.classes:
            of_class[row].append(index)
    depth = max(map(len, of_class))
    return torch.tensor([row + [len(hypernyms)] * (depth - len(row)) for row in of_class])


class Posteriors(DenseEncoder):
    """EfficientNet-Lite2 as a dense classifier: (B, 1000, H // stride, W // stride) posteriors, scaled to unit length.

    Divide a token by its sum to recover the posterior. `class_embeddings` (1000, 384) are the unit MiniLM embeddings of
    the class names.

    Args:
        temperature: divides the logits before the softmax.
        topk: number of classes kept at each position, their posteriors rescaled to sum to one; 0 keeps all.
        output_stride: of the network; 16 dilates its last stages and doubles the grid.
        scale: factor by which images are enlarged first (the network was trained on objects that fill the frame); the
            stride is output_stride / scale, rounded. 16 / 14 gives the grid of a patch-14 transformer.
        names: how class names are written: a key of `imagenet_anchors.safetensors`, or a weighted sum of several.
        centre: shift the image so that each position is centred on its cell rather than on the cell's far corner.
    """

    class_embeddings: Float[Tensor, "k d"]

    def __init__(
        self,
        temperature: float = 1.0,
        topk: int = 0,
        output_stride: Literal[16, 32] = 16,
        scale: float = 16 / 14,
        names: str = "synonyms+2*defined+2*worn",
        centre: bool = True,
        name: str = "effnet-lite2",
        dim: int = 1000,
    ) -> None:
        if not (temperature > 0 and scale > 0 and 0 <= topk <= 1000):
            raise FusionerError(f"{name}: temperature and scale must be positive and topk in 0..1000")
        super().__init__(name, dim, max(1, round(output_stride / scale)), HALF, HALF)
        self.temperature, self.topk, self.output_stride, self.names = temperature, topk, output_stride, names
        self.centre = centre
        self.network = load_effnet(read_weights("effnet_lite2.safetensors"), output_stride)
        self.class_embeddings = _mixed_embeddings(names, name)
        self.freeze()

    def hypernyms(self) -> Hypernyms:
        """Load the classes' WordNet hypernyms: embeddings (860, 384), indices (1000, 19)."""
        parsed = parse_hypernyms(weights_file("imagenet_kinds.tsv").read_text(encoding="utf-8"))
        of_class = hypernyms_of_classes(parsed, len(self.class_embeddings))
        return Hypernyms(read_weights("imagenet_kinds.safetensors")["kinds"], of_class)

    def settings(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("temperature", "topk", "output_stride", "centre")}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k gh gw"]:
        p = (self.logits(pixels) / self.temperature).softmax(dim=1)
        if 0 < self.topk < p.shape[1]:
            top, index = p.topk(self.topk, dim=1)
            p = torch.zeros_like(p).scatter_(1, index, top / top.sum(dim=1, keepdim=True))
        return p

    def logits(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000 gh gw"]:
        """Compute class logits on the token grid, from normalised pixels whose sides are multiples of the stride."""
        gh, gw = (side // self.stride for side in pixels.shape[-2:])
        size = (gh * self.output_stride, gw * self.output_stride)
        pixels = _resize(pixels, size, antialias=self.output_stride < self.stride)
        if self.centre:
            offset = self.network.offset
            # Up to a multiple of 32, so that every strided layer pads as on even sides.
            right, bottom = (-(side + offset) % 32 for side in (size[1], size[0]))
            pixels = F.pad(pixels, (offset, right, offset, bottom))
        return self.network(pixels)[1][..., :gh, :gw]


class ConSE(Posteriors):
    """EfficientNet-Lite2's posteriors in MiniLM's space: (B, 384, H // stride, W // stride) unit-length tokens.

    token = sum over classes of p(class | position) * class_embedding(class), scaled to unit length. Any label has some
    cosine with any token, so compare it with the cosines of all `class_embeddings` (a z-score).
    """

    text_aligned = True

    def __init__(
        self,
        *,
        output_stride: Literal[16, 32] = 32,
        scale: float = 4 / 3,
        names: str = "synonyms",
        name: str = "effnet-lite2-conse",
        **options: Any,
    ) -> None:
        super().__init__(output_stride=output_stride, scale=scale, names=names, name=name, dim=384, **options)

    def settings(self) -> dict[str, Any]:
        embeddings = torch.nn.ParameterDict({"anchors": self.class_embeddings})
        return super().settings() | {"anchors": state_digest(embeddings, self.names)}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return torch.einsum("bkhw,kd->bdhw", super().tokens(pixels), self.class_embeddings)


def _mixed_embeddings(names: str, encoder: str) -> Float[Tensor, "k d"]:
    """Return the class embeddings of a variant, or of a weighted sum of variants such as "synonyms+2*defined"."""
    variants = read_weights("imagenet_anchors.safetensors")
    total = torch.zeros(())
    for term in names.split("+"):
        weight, _, variant = term.rpartition("*")
        if variant not in variants or not (weight or "1").isdecimal():
            known = ", ".join(sorted(variants))
            raise FusionerError(f"{encoder}: class names cannot be written as {names!r}; variants are {known}")
        total = total + int(weight or 1) * F.normalize(variants[variant], dim=1)
    return F.normalize(total, dim=1)


def _resize(pixels: Float[Tensor, "b c h w"], size: tuple[int, int], antialias: bool) -> Float[Tensor, "b c h2 w2"]:
    """Resize bilinearly.

    Exported graphs compute sample positions in integers: runtimes round float32 positions differently from torch, which
    changes the posterior's fifth digit.
    """
    if antialias or not torch.compiler.is_exporting():
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    for axis, new in zip((2, 3), size, strict=True):
        last, unit = pixels.shape[axis] - 1, 2 * new
        centres = 2 * torch.arange(new, device=pixels.device) + 1
        position = (centres * (last + 1) - new).clamp(0, unit * last)  # in units of 1 / unit
        index = position // unit
        fraction = (position - index * unit).to(pixels.dtype) / unit
        left, right = (pixels.index_select(axis, (index + step).clamp(max=last)) for step in (0, 1))
        pixels = left + (right - left) * (fraction[:, None] if axis == 2 else fraction)
    return pixels
