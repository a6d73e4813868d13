"""EfficientNet-Lite2 (ImageNet-1k) as a dense network: class logits at every position.

Architecture: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (ReLU6, no squeeze and
excitation, stem and head not scaled), widths x 1.1 and depths x 1.2. Trained at 260 px on (RGB - 0.5) / 0.5.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fusioner.encoders.bundled import load_weights

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
    """(RGB - 0.5) / 0.5 -> class logits (B, 1000, h, w) at every position.

    The classifier runs as a 1x1 convolution, without the global average it was trained behind. `output_stride=16`
    replaces the last stride by dilation: on sides that are multiples of 32 its odd positions equal the positions of
    `output_stride=32`.

    TensorFlow's SAME padding adds nothing on the left of an even-sized strided layer, so position i is centred on pixel
    `i * output_stride + output_stride - 0.5`, the far corner of its cell.
    """

    def __init__(self, output_stride: Literal[16, 32] = 32) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=BN_EPS)
        blocks, width, total_stride, dilation = [], 32, 2, 1
        for expansion, kernel, first_stride, out, depth in STAGES:
            for index in range(depth):
                stride, next_dilation = (first_stride if index == 0 else 1), dilation
                if total_stride * stride > output_stride:
                    stride, next_dilation = 1, dilation * stride  # only later layers are dilated
                blocks.append(Block(width, out, kernel, stride, dilation, expansion))
                width, total_stride, dilation = out, total_stride * stride, next_dilation
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(1280, eps=BN_EPS)
        self.fc = nn.Linear(1280, 1000)

    def features(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280 h w"]:
        """Compute the features before the average; h = ceil(H / output_stride)."""
        x = F.relu6(self.bn0(self.conv_stem(pixels)))
        return F.relu6(self.bn1(self.conv_head(self.blocks(x))))

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1000 h w"]:
        """Compute the class logits at every position."""
        return F.conv2d(self.features(pixels), self.fc.weight[:, :, None, None], self.fc.bias)

    def fuse(self) -> "EfficientNetLite2":
        """Fold every BatchNorm into its convolution, for inference only; the state keys change."""
        self.eval()
        _fold(self, {"conv_stem": "bn0", "conv_head": "bn1"})
        for block in self.blocks:
            expansion = {"expand_conv": "bn0"} if hasattr(block, "expand_conv") else {}
            _fold(block, expansion | {"depthwise_conv": "bn1", "project_conv": "bn2"})
        return self


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, linear 1x1 projection; a shortcut if shapes allow."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, dilation: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        if expansion > 1:
            self.expand_conv = nn.Conv2d(width, hidden, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(hidden, eps=BN_EPS)
        self.depthwise_conv = SameConv2d(
            hidden, hidden, kernel, stride=stride, dilation=dilation, groups=hidden, bias=False
        )
        self.bn1 = nn.BatchNorm2d(hidden, eps=BN_EPS)
        self.project_conv = nn.Conv2d(hidden, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps=BN_EPS)
        self.expands = expansion > 1
        self.shortcut = width == out and stride == 1

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        y = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = F.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return x + y if self.shortcut else y


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and to the bottom.

    Output sides are the input's divided by the stride, rounded up.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        (top, bottom), (left, right) = (self._pads(side) for side in input.shape[-2:])
        if top == bottom and left == right:  # the convolution's own padding is faster
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pads(self, size: int) -> tuple[int, int]:
        stride, reach = self.stride[0], self.dilation[0] * (self.kernel_size[0] - 1)
        total = max(reach + 1 - (size % stride or stride), 0)
        return total // 2, total - total // 2


def _fold(module: nn.Module, norms: Mapping[str, str]) -> None:
    for conv, norm in norms.items():
        setattr(module, conv, fuse_conv_bn_eval(module.get_submodule(conv), module.get_submodule(norm)))  # type: ignore[arg-type]
        setattr(module, norm, nn.Identity())


def load_effnet(state: Mapping[str, Tensor], output_stride: Literal[16, 32] = 32) -> EfficientNetLite2:
    """Build the network with folded BatchNorm, in eval mode; FusionerError if the weights do not fit."""
    with torch.device("meta"):
        network = EfficientNetLite2(output_stride)
    load_weights(network, state, "EfficientNet-Lite2")
    return network.fuse()
