"""Models of timm (optional: `pip install fusioner[timm]`): CLIP's ResNets and the Perception Encoder.

CLIP pools a ResNet's last feature map by attention and projects the result. The tokens here are that pooling's value
and output projections at every position, without attention between positions (as in MaskCLIP, arXiv 2112.01071).
"""

from importlib import import_module
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fusioner.encoders.base import CLIP_MEAN, CLIP_STD, DenseEncoder, to_grid
from fusioner.encoders.hub import first_line, locate
from fusioner.errors import FusionerError


class ClipResNet(DenseEncoder):
    """CLIP RN50 or RN101 as a frozen dense encoder; `model` is timm's `resnet50_clip` or `resnet101_clip`."""

    text_aligned = True

    def __init__(self, model: nn.Module, name: str) -> None:
        pool: Any = model.head
        super().__init__(name, pool.proj.out_features, 32, CLIP_MEAN, CLIP_STD)
        self.model: Any = model
        self.freeze()

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        pool = self.model.head
        features = self.model.forward_features(pixels.to(pool.proj.weight.dtype))  # (b, c, gh, gw)
        if pool.qkv is None:
            weight, bias = pool.v.weight, pool.v.bias
        else:
            weight, bias = pool.qkv.weight.chunk(3)[2], pool.qkv.bias.chunk(3)[2]  # rows: query, key, value
        values = F.linear(features.flatten(2).transpose(1, 2), weight, bias)  # (b, gh * gw, c)
        return to_grid(pool.proj(values), pixels, self.stride)


class TimmVit(DenseEncoder):
    """Patch tokens of a vision transformer of timm, after the final LayerNorm; position embeddings fit any grid."""

    def __init__(self, model: Any, name: str) -> None:
        settings = model.pretrained_cfg
        super().__init__(name, model.num_features, model.patch_embed.patch_size[0], settings["mean"], settings["std"])
        self.model = model
        self.freeze()

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        states = self.model.forward_features(pixels.to(self.model.patch_embed.proj.weight.dtype))
        return to_grid(states, pixels, self.stride)


def load_clip_resnet(source: str, name: str) -> ClipResNet:
    """Load the CLIP ResNet of a folder or Hugging Face repository, under timm's or OpenAI's keys.

    `name` is `clip-rn50` or `clip-rn101`, with or without `@/folder`.
    """
    depth = name.partition("@")[0].removeprefix("clip-rn")
    return ClipResNet(_load(source, name, f"resnet{depth}_clip.openai"), name)


def load_vit(source: str, name: str, architecture: str) -> TimmVit:
    """Load a vision transformer of timm from a folder or Hugging Face repository."""
    return TimmVit(_load(source, name, architecture, dynamic_img_size=True), name)


def _load(source: str, name: str, architecture: str, **options: Any) -> Any:
    timm = _import_timm(name)  # before a download
    checkpoint = locate(source, name)
    model = timm.create_model(architecture, pretrained=False, **options)
    state = import_module(type(model).__module__).checkpoint_filter_fn(checkpoint.read(), model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip().split(", ")[0]
        raise FusionerError(f"{name}: {checkpoint.weights} does not hold {architecture}: {problem}") from error
    return model.float()


def _import_timm(name: str) -> Any:
    try:
        return import_module("timm")
    except ModuleNotFoundError as error:
        missing = "timm" if error.name == "timm" else f"timm, which lacks {error.name}"
        raise FusionerError(f"{name} needs {missing}: pip install fusioner[timm]") from error
    except Exception as error:  # a torchvision built for another torch fails in many ways
        raise FusionerError(
            f"{name} needs timm, which fails to import ({first_line(error)}); install a torchvision for your torch"
        ) from error
