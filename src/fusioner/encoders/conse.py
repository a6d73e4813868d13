"""A classifier made an aligned dense encoder: class posteriors, weighted over the embeddings of the class names.

ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, arXiv 1312.5650),
here at every position of the image instead of once an image.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fusioner.encoders.effnet import load_effnet
from fusioner.encoders.embedded import read_weights
from fusioner.encoders.image import HALF, DenseEncoder
from fusioner.errors import FusionerError


def effnet_lite2_conse() -> "ConSE":
    """The zoo's `effnet-lite2-conse`; FusionerError when the installation lacks the weights or they are broken."""
    return ConSE()


class ConSE(DenseEncoder):
    """EfficientNet-Lite2's posteriors in MiniLM's space: (B, 384, H // stride, W // stride) unit-length tokens.

    token = sum over classes of p(class | position) * anchor(class), scaled to unit length. Its cosine with a label's
    MiniLM embedding says how well the label fits; any label has some cosine with anything, so compare it with the
    cosines of the thousand `anchors` (a z-score) before calling it high.

    Args:
        temperature: divides the logits before the softmax; below 1 sharpens.
        topk: keep this many classes at each position (their posteriors rescaled to one); 0 keeps all.
        output_stride: of the network; 16 dilates its last stages and doubles the grid.
        scale: by how much images grow before the network reads them (it was trained on objects that fill the frame);
            the stride is output_stride / scale, rounded.
        names: how class names are written, a key of `fusioner.encoders.names.ANCHOR_VARIANTS`.
        centre: move the image so that each position looks at the middle of its cell; off, at its far corner.
        name: the zoo name.

    Attributes:
        anchors: (1000, 384), the unit embeddings of the class names.
    """

    anchors: Float[Tensor, "k d"]

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
        if not (temperature > 0 and scale > 0 and 0 <= topk <= 1000):
            raise FusionerError(f"{name}: temperature and scale must be positive and topk in 0..1000")
        super().__init__(name, 384, max(1, round(output_stride / scale)), HALF, HALF)
        self.temperature, self.topk, self.output_stride, self.names = temperature, topk, output_stride, names
        self.centre = centre
        self.network = load_effnet(read_weights("effnet_lite2.safetensors"), output_stride)
        variants = read_weights("imagenet_anchors.safetensors")
        if names not in variants:
            raise FusionerError(
                f"{name}: no way {names!r} to write class names; there are {', '.join(sorted(variants))}"
            )
        self.register_buffer("anchors", F.normalize(variants[names], dim=1))
        self.freeze()

    def settings(self) -> dict[str, Any]:
        """What decides the tokens beside the weights and the normalisation."""
        keys = ("temperature", "topk", "output_stride", "names", "centre")
        return {key: getattr(self, key) for key in keys}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """Posteriors times anchors."""
        p = self.posterior(self.logits(pixels))  # (B, 1000, Gh, Gw)
        return torch.einsum("bkhw,kd->bdhw", p, self.anchors)

    def logits(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000 gh gw"]:
        """Class logits on the token grid, from normalised pixels whose sides are multiples of the stride."""
        gh, gw = (side // self.stride for side in pixels.shape[-2:])
        size = (gh * self.output_stride, gw * self.output_stride)
        pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
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
