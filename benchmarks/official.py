"""Run the official implementation from a checkout of its repository; none of its code is copied here.

    git clone https://github.com/chaofanma/Fusioner DIR      # GPL-3.0

Packages of which it uses little are replaced in this process: OpenAI's CLIP (a transformer of `nn.MultiheadAttention`
with random weights), `DropPath`, `hflip`, and the data sets. `pip install einops`.
"""

import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

CONTEXT, LAST_TOKEN = 77, 49407


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32 for inputs of any type."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).type(input.dtype)


class QuickGELU(nn.Module):
    """Sigmoid approximation of GELU, as in CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Residual attention block of CLIP; tensors are (tokens, images, width)."""

    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2, self.mask = LayerNorm(width), LayerNorm(width), mask
        layers = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        mask = None if self.mask is None else self.mask.to(dtype=x.dtype, device=x.device)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Stack of residual attention blocks, as in CLIP."""

    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, attn_mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


def tokenize(texts: list[str]) -> Tensor:
    """Return hashed tokens (N, 77) of each text; the last, at which CLIP reads the text, has the highest id."""
    rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        words = text.split()[: CONTEXT - 1]
        row[: len(words)] = torch.tensor([hash(word) % (LAST_TOKEN - 1) + 1 for word in words])
        row[len(words)] = LAST_TOKEN
    return rows


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module
    return module


class DropPath(nn.Identity):
    """Stochastic depth of rate 0, as in the official recipe."""


class Official:
    """Official model, optimisers and `run_one_batch`, on the CPU.

    Args:
        checkout: folder of the official repository.
    """

    def __init__(self, checkout: Path) -> None:
        if not (checkout / "model" / "full_model.py").is_file():
            raise SystemExit(f"{checkout} is not a checkout of the official repository: no model/full_model.py")
        sys.path.insert(0, str(checkout))
        sys.argv = ["train.py", "--device", "cpu", "--dataset_name", "pascal"]
        clip = _module("clip", tokenize=tokenize)
        clip.model = _module("clip.model", LayerNorm=LayerNorm, Transformer=Transformer)  # type: ignore[attr-defined]
        for name, attributes in {
            "timm.models.layers": {"DropPath": DropPath},
            "torchvision.transforms.functional": {"hflip": lambda image: image.flip(-1)},
        }.items():
            parts = name.split(".")
            for end in range(1, len(parts)):
                _module(".".join(parts[:end]))
            _module(name, **attributes)
        _module("dataset", get_dataset=None)
        from configs import args  # type: ignore[import-not-found]
        from model.full_model import FullModel  # type: ignore[import-not-found]

        FullModel.init_weight = _init_random
        args.epochs = args.warmup_epochs + args.training_epochs
        from model import get_learner  # type: ignore[import-not-found]
        from utils.metric import Metric  # type: ignore[import-not-found]
        from utils.utils import loss_with_ignored_area  # type: ignore[import-not-found]

        from train import run_one_batch  # type: ignore[import-not-found]

        self._run, self._metric, self._masked_loss = run_one_batch, Metric, loss_with_ignored_area
        self.epochs, self.batch_size = args.epochs, args.batch_size
        self.model, self.optimizers = get_learner(10)
        self.model.train()

    def gradients(self, images: Tensor, masks: Tensor, name: str) -> float:
        """Compute gradients for 224 px images with one class each, and return the loss."""
        batch = {
            "query_img": images[:, None],
            "query_mask": (masks[:, None, None] == 1).float(),
            "query_mask_ignore": masks[:, None] == 255,
            "input_text": [[name]] * len(images),
            "input_cls_id": [{name: 1}] * len(images),
        }
        bce = nn.BCEWithLogitsLoss(reduction="none")
        metric = self._metric()
        loss = self._run(self.model, batch, metric, lambda *args: self._masked_loss(bce, *args), is_train=True)
        metric.compute_iou()
        return float(loss)

    def update(self) -> None:
        """Update the weights with the official optimisers."""
        self.optimizers.schedule(["fusion"], 5)
        self.optimizers.step()
        self.optimizers.zero_grad()

    @torch.no_grad()
    def predict(self, image: Tensor, names: list[str]) -> Tensor:
        """Return the logits (1, K, 224, 224), as computed by the official test."""
        self.model.eval()
        return self.model(image, names)


def _init_random(model: Any) -> None:
    """Initialise the text model randomly instead of downloading CLIP's weights."""
    for weight in model.text_model.parameters():
        nn.init.normal_(weight, std=0.02)
