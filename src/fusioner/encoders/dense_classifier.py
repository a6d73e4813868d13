"""A classifier made an aligned dense encoder: class posteriors, weighted over the embeddings of the class names.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, arXiv 1312.5650),
here at every position of the image instead of once an image.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fusioner.encoders.base import Hypernyms, state_digest
from fusioner.encoders.bundled import read_weights, weights_file
from fusioner.encoders.effnet import load_effnet
from fusioner.encoders.image import HALF, DenseEncoder
from fusioner.encoders.imagenet_classes import kinds_above, parse_kinds
from fusioner.errors import FusionerError


def effnet_lite2_conse() -> "ConSE":
    """The zoo's `effnet-lite2-conse`; FusionerError when the installation lacks the weights or they are broken."""
    return ConSE()


def effnet_lite2() -> "Posteriors":
    """The zoo's `effnet-lite2`; FusionerError when the installation lacks the weights or they are broken."""
    return Posteriors()


class Posteriors(DenseEncoder):
    """EfficientNet-Lite2 as a dense classifier: (B, 1000, H // stride, W // stride) posteriors, of unit length.

    Divide a token by its sum to have the posterior back. Similarity to a label is read through the `anchors`, see
    `model.similarity`.

    Args:
        temperature: divides the logits before the softmax; below 1 sharpens.
        topk: keep this many classes at each position (their posteriors rescaled to one); 0 keeps all.
        output_stride: of the network; 16 dilates its last stages and doubles the grid.
        scale: by how much images grow before the network reads them (it was trained on objects that fill the frame);
            the stride is output_stride / scale, rounded. 16 / 14 gives the grid of a patch-14 transformer.
        names: how class names are written, a key of `fusioner.encoders.imagenet_classes.ANCHOR_VARIANTS` or several
            with weights, as in "synonyms+2*defined": their weighted mean.
        centre: move the image so that each position looks at the middle of its cell; off, at its far corner.
        name: the zoo name.

    Attributes:
        class_embeddings: (1000, 384), the unit MiniLM embeddings of the class names.
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
        self.class_embeddings = _mixed_anchors(names, name)
        self.freeze()

    def hypernyms(self) -> Hypernyms:
        """Load the classes' WordNet hypernyms: embeddings (860, 384), indices (1000, 19)."""
        kinds = parse_kinds(weights_file("imagenet_kinds.tsv").read_text(encoding="utf-8"))
        of_class = kinds_above(kinds, len(self.class_embeddings))
        return Hypernyms(read_weights("imagenet_kinds.safetensors")["kinds"], of_class)

    def settings(self) -> dict[str, Any]:
        """What decides the tokens beside the weights and the normalisation."""
        return {key: getattr(self, key) for key in ("temperature", "topk", "output_stride", "centre")}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k gh gw"]:
        """The posterior at every position."""
        return self.posterior(self.logits(pixels))

    def logits(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000 gh gw"]:
        """Class logits on the token grid, from normalised pixels whose sides are multiples of the stride."""
        gh, gw = (side // self.stride for side in pixels.shape[-2:])
        size = (gh * self.output_stride, gw * self.output_stride)
        pixels = _resized(pixels, size, shrinks=self.output_stride < self.stride)
        if self.centre:
            offset = self.network.offset
            # Up to a multiple of 32, so that every strided layer pads as it does on even sides.
            right, bottom = (-(side + offset) % 32 for side in (size[1], size[0]))
            pixels = F.pad(pixels, (offset, right, offset, bottom))
        return self.network(pixels)[1][..., :gh, :gw]

    def posterior(self, logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """Softmax over the classes at the temperature, cut to the `topk`."""
        p = (logits / self.temperature).softmax(dim=1)
        if 0 < self.topk < p.shape[1]:
            kept, index = p.topk(self.topk, dim=1)
            p = torch.zeros_like(p).scatter_(1, index, kept / kept.sum(dim=1, keepdim=True))
        return p


def _resized(pixels: Float[Tensor, "b c h w"], size: tuple[int, int], shrinks: bool) -> Float[Tensor, "b c h2 w2"]:
    """Bilinear, smoothed before it shrinks.

    In a graph the places are told in integers: runtimes compute them in float32 from another side than torch does, and
    the posterior then differs in its fifth digit.
    """
    if shrinks or not torch.compiler.is_exporting():
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    for axis, new in zip((2, 3), size, strict=True):
        last, unit = pixels.shape[axis] - 1, 2 * new
        at = ((2 * torch.arange(new, device=pixels.device) + 1) * (last + 1) - new).clamp(0, unit * last)  # / unit
        first = at // unit
        share = (at - first * unit).to(pixels.dtype) / unit
        one, other = (pixels.index_select(axis, (first + step).clamp(max=last)) for step in (0, 1))
        pixels = one + (other - one) * (share[:, None] if axis == 2 else share)
    return pixels


class ConSE(Posteriors):
    """EfficientNet-Lite2's posteriors in MiniLM's space: (B, 384, H // stride, W // stride) unit-length tokens.

    token = sum over classes of p(class | position) * anchor(class), scaled to unit length. Its cosine with a label's
    MiniLM embedding says how well the label fits; any label has some cosine with anything, so compare it with the
    cosines of the thousand `anchors` (a z-score) before calling it high. Arguments and attributes are its parent's.
    """

    text_aligned = True  # the tokens live in the text encoder's space

    def __init__(
        self,
        temperature: float = 1.0,
        topk: int = 0,
        output_stride: Literal[16, 32] = 32,
        scale: float = 4 / 3,
        names: str = "synonyms",
        centre: bool = True,
        name: str = "effnet-lite2-conse",
    ) -> None:
        super().__init__(temperature, topk, output_stride, scale, names, centre, name, dim=384)

    def settings(self) -> dict[str, Any]:
        """What decides the tokens beside the weights and the normalisation."""
        anchors = torch.nn.ParameterDict({"anchors": self.class_embeddings})
        return super().settings() | {"anchors": state_digest(anchors, self.names)}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Posteriors times anchors."""
        return torch.einsum("bkhw,kd->bdhw", super().tokens(pixels), self.class_embeddings)


def _mixed_anchors(names: str, encoder: str) -> Float[Tensor, "k d"]:
    """Unit anchors of "variant" or of a weighted sum of variants such as "synonyms+2*defined"."""
    variants = read_weights("imagenet_anchors.safetensors")
    total = torch.zeros(())
    for term in names.split("+"):
        weight, _, variant = term.rpartition("*")
        if variant not in variants or not (weight or "1").isdecimal():
            known = ", ".join(sorted(variants))
            raise FusionerError(f"{encoder}: no way {names!r} to write class names; there are {known}")
        total = total + int(weight or 1) * F.normalize(variants[variant], dim=1)
    return F.normalize(total, dim=1)
