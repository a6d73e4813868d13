"""CLIP's ResNets through timm (optional: `pip install fusioner[timm]`): dense tokens in the joint space, stride 32.

CLIP pools a ResNet's last map by attention and projects the result. The tokens here are that pooling's value and output
projections applied at every position, with the attention between positions left out (as MaskCLIP, arXiv 2112.01071).
"""

from importlib import import_module
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fusioner.encoders.hub import locate
from fusioner.encoders.image import CLIP_MEAN, CLIP_STD, DenseEncoder
from fusioner.errors import FusionerError


class ClipResNet(DenseEncoder):
    """CLIP RN50 or RN101 as a frozen dense encoder; `model` is timm's `resnet50_clip` or its kin, with its pool."""

    text_aligned = True  # the tokens live in the text encoder's space

    def __init__(self, model: nn.Module, name: str) -> None:
        pool: Any = model.head
        super().__init__(name, pool.proj.out_features, 32, CLIP_MEAN, CLIP_STD)
        self.model: Any = model
        self.freeze()

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """The last feature map through the pooling's value and output projections, position by position."""
        features = self.model.forward_features(pixels.to(self.model.head.proj.weight.dtype))  # (b, c, gh, gw)
        values = F.linear(features.flatten(2).transpose(1, 2), *self._value())  # (b, gh * gw, c)
        return self.model.head.proj(values).transpose(1, 2).unflatten(2, features.shape[-2:])

    def _value(self) -> tuple[Tensor, Tensor]:
        pool = self.model.head
        if pool.qkv is None:
            return pool.v.weight, pool.v.bias
        return pool.qkv.weight.chunk(3)[2], pool.qkv.bias.chunk(3)[2]  # rows: query, key, value


def load_clip_resnet(source: str, name: str, architecture: str) -> ClipResNet:
    """The frozen encoder of a timm repository or folder (`model.safetensors` beside `config.json`).

    Args:
        source: folder or hub id.
        name: kept as `.name`.
        architecture: timm's name of the network with its tag, `resnet50_clip.openai` say.

    Raises:
        FusionerError: timm is missing or does not import, or the weights are missing, broken or of another network.
    """
    timm = _import_timm(name)
    file = locate(source, name) / "model.safetensors"
    if not file.is_file():
        raise FusionerError(f"{name}: {file.parent} has no model.safetensors")
    model = timm.create_model(architecture, pretrained=False)
    try:
        model.load_state_dict(load_file(file))
    except SafetensorError as error:
        raise FusionerError(f"{name}: {file} cannot be read ({error})") from error
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise FusionerError(f"{name}: {file} holds no {architecture}: {problem}") from error
    return ClipResNet(model.float(), name)


def _import_timm(name: str) -> Any:
    try:
        timm: Any = import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise FusionerError(f"{name} needs timm, which lacks {error.name}: pip install fusioner[timm]") from error
        raise FusionerError(f"{name} needs timm: pip install fusioner[timm]") from error
    except Exception as error:  # a torchvision built for another torch fails in ways of its own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FusionerError(
            f"{name} needs timm, which does not import ({reason}); install a torchvision that fits your torch"
        ) from error
    return timm
