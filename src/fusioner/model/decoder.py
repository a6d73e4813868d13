"""The convolutional decoder: from the token grid to a dense feature map (paper section 3.3)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig
from fusioner.model.cpu_kernels import convolve


class Decoder(nn.Module):
    """Fused patches (B, W, Gh, Gw) -> features (B, C, H, W).

    3x3 convolution, normalisation, ReLU at 1x, 2x, 4x, ... the grid with a bilinear x2 between, then a 1x1 convolution.
    With the default four widths the last map is at 8x the grid; `size` resizes it.
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        widths = (config.width, *config.decoder_widths)
        self.stages = len(config.decoder_widths)
        self.norm = config.decoder_norm
        for i in range(self.stages):
            self.add_module(f"conv_{i}", nn.Conv2d(widths[i], widths[i + 1], 3, padding=1))
        self.add_module(f"conv_{self.stages}", nn.Conv2d(widths[-1], widths[-1], 1))

    def forward(self, x: Float[Tensor, "b w gh gw"], size: tuple[int, int] | None = None) -> Float[Tensor, "b c h w2"]:
        """Resize to `size` (height, width); None keeps the decoder's resolution, 2**(stages - 1) times the grid."""
        for i in range(self.stages):
            if i > 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = F.relu(self._normalise(self._convolve(i, x)), inplace=True)
        x = self._convolve(self.stages, x)
        return x if size is None else F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def _convolve(self, number: int, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        conv: Any = self.get_submodule(f"conv_{number}")
        return convolve(conv, x)

    def _normalise(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.norm == "instance":
            return _instance_norm(x)
        return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


def _instance_norm(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.instance_norm(x)
    # Equals a batch norm of one image, which unlike instance_norm keeps the channels-last layout.
    return torch.cat([F.batch_norm(one, None, None, training=True) for one in x.split(1)])
