"""EfficientNet-Lite2 (ImageNet-1k) as a dense network: features and class logits at every position.

Architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (ReLU6, no squeeze and
excitation, stem and head not scaled), widths x 1.1 and depths x 1.2. Trained at 260 px on (RGB - 0.5) / 0.5.
"""

from collections.abc import Mapping
from typing import Literal, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fusioner.errors import FusionerError

# (expansion, kernel, stride of the first block, width, blocks) of each stage
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 3),
    (6, 5, 2, 48, 3),
    (6, 3, 2, 88, 4),
    (6, 5, 1, 120, 4),
    (6, 5, 2, 208, 5),
    (6, 3, 1, 352, 1),
)
BN_EPS = 1e-3  # TensorFlow's default; torch's is 1e-5


class EfficientNetLite2(nn.Module):
    """(RGB - 0.5) / 0.5 -> penultimate features (B, 1280, h, w) and class logits (B, 1000, h, w) at every position.

    The classifier runs as a 1x1 convolution, without the global average it was trained behind. `output_stride=16`
    removes the last stride and dilates what follows: on sides that are multiples of 32 its odd positions are exactly
    the positions of `output_stride=32`, and the even ones lie between, at little more cost.

    TensorFlow's SAME padding puts nothing on the left of an even-sized strided layer, so position i looks at pixel
    `i * output_stride + output_stride - 0.5`, the far corner of its cell; see `offset`.
    """

    def __init__(self, output_stride: Literal[16, 32] = 32):
        super().__init__()
        if output_stride not in (16, 32):
            raise FusionerError(f"EfficientNet-Lite2's output stride is 16 or 32, not {output_stride}")
        self.output_stride = output_stride
        self.conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=BN_EPS)
        blocks, width, reached, dilation = [], 32, 2, 1
        for expansion, kernel, first_stride, out, depth in STAGES:
            for index in range(depth):
                stride, next_dilation = (first_stride if index == 0 else 1), dilation
                if reached * stride > output_stride:
                    stride, next_dilation = 1, dilation * stride  # the layer itself still sees its trained neighbours
                blocks.append(Block(width, out, kernel, stride, dilation, expansion))
                width, reached, dilation = out, reached * stride, next_dilation
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1280, eps=BN_EPS)
        self.fc = nn.Linear(1280, 1000)

    @property
    def offset(self) -> int:
        """Pixels by which the image must move right and down for position i to look at the middle of its cell."""
        return self.output_stride // 2

    def features(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280 h w"]:
        """Penultimate features, before any pooling; h = ceil(H / output_stride)."""
        x = F.relu6(self.bn0(self.conv_stem(pixels)))
        x = self.blocks(x)
        return F.relu6(self.bn1(self.conv_head(x)))

    def classify(self, features: Float[Tensor, "b 1280 h w"]) -> Float[Tensor, "b 1000 h w"]:
        """The classifier's logits at every position."""
        return F.conv2d(features, self.fc.weight[:, :, None, None], self.fc.bias)

    def forward(
        self, pixels: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b 1280 h w"], Float[Tensor, "b 1000 h w"]]:
        """(features, logits) at every position."""
        features = self.features(pixels)
        return features, self.classify(features)

    def fuse(self) -> "EfficientNetLite2":
        """Fold every BatchNorm into its convolution (same outputs, faster), for good; the state keys change."""
        self.eval()
        self.conv_stem, self.bn0 = _fold(self.conv_stem, self.bn0), nn.Identity()
        self.conv_head, self.bn1 = _fold(self.conv_head, self.bn1), nn.Identity()
        for block in self.blocks:
            cast(Block, block).fuse()
        return self


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, linear 1x1 projection; a shortcut where shapes allow."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, dilation: int, expansion: int):
        super().__init__()
        wide = width * expansion
        if expansion > 1:
            self.expand_conv = nn.Conv2d(width, wide, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(wide, eps=BN_EPS)
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride=stride, dilation=dilation, groups=wide, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, eps=BN_EPS)
        self.project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps=BN_EPS)
        self.expands = expansion > 1
        self.shortcut = width == out and stride == 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Same grid, or half of it (rounded up) for a strided block."""
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y

    def fuse(self) -> None:
        """Fold the BatchNorms into the convolutions."""
        if self.expands:
            self.expand_conv, self.bn0 = _fold(self.expand_conv, self.bn0), nn.Identity()
        self.depthwise_conv, self.bn1 = _fold(self.depthwise_conv, self.bn1), nn.Identity()
        self.project_conv, self.bn2 = _fold(self.project_conv, self.bn2), nn.Identity()


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: an odd pixel of it goes to the right and to the bottom."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Output sides are the input's divided by the stride, rounded up."""
        (top, bottom), (left, right) = (self._pads(side) for side in input.shape[-2:])
        if top == bottom and left == right:  # the convolution's own padding is faster
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pads(self, size: int) -> tuple[int, int]:
        stride, reach = self.stride[0], self.dilation[0] * (self.kernel_size[0] - 1)
        total = max(reach + 1 - (size % stride or stride), 0)
        return total // 2, total - total // 2


def _fold(conv: nn.Module, norm: nn.Module) -> nn.Module:
    return fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))


def load_effnet(state: Mapping[str, Tensor], output_stride: Literal[16, 32] = 32) -> EfficientNetLite2:
    """The network with these weights, BatchNorm folded, in eval mode; FusionerError when they do not fit."""
    network = EfficientNetLite2(output_stride)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise FusionerError(
            f"the weights do not fit EfficientNet-Lite2: {str(error).splitlines()[-1].strip()}"
        ) from error
    return network.fuse()
