"""The official optimiser, AdamW on the fusion and Adam on the decoder, and its schedules."""

import math

import torch
from torch import Tensor, nn

from fusioner.training.config import OptimOptions


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Return half a cosine from `start` at step 0 to `end` at step `steps` (arXiv 1608.03983)."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / max(1, steps)))


def warmup_cosine(step: int, steps: int, peak: float, end: float, warmup: int = 0) -> float:
    """Rise linearly from 0 to `peak` at step `warmup - 1`, then follow `cosine` down to `end` at `steps`."""
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    return cosine(step - warmup, steps - warmup, peak, end)


def build_optimizer(model: nn.Module, options: OptimOptions) -> torch.optim.AdamW:
    """Build one AdamW with three groups; without weight decay it is Adam, so the decoder's group is the official one.

    Groups are named `weights`, `others` (biases, gains and other 1-d parameters outside the decoder) and `decoder`.
    """
    weights: list[Tensor] = []
    others: list[Tensor] = []
    decoder: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the closed-set head's
            continue
        if name.startswith("decoder."):
            decoder.append(parameter)
        else:
            (weights if parameter.dim() >= 2 else others).append(parameter)
    betas = (options.beta1, 0.999)
    groups = [
        {"name": "weights", "params": weights, "betas": betas},
        {"name": "others", "params": others, "betas": betas},
        {"name": "decoder", "params": decoder, "betas": (0.9, 0.999)},
    ]
    # The fused kernel is the fastest, but unscales fp16 gradients itself, which clipping must do before.
    fused = next(model.parameters()).device.type in ("cpu", "cuda") and options.precision != "16"
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, options: OptimOptions, step: int, steps: int) -> dict[str, float]:
    """Set learning rates and weight decay of a step; return them for the log."""
    warmup = round(options.warmup * steps)
    lr = warmup_cosine(step, steps, options.lr, options.min_lr, warmup)
    decay = cosine(step, steps, options.weight_decay, options.weight_decay_end)
    decoder_lr = options.decoder_lr
    if options.decoder_schedule == "cosine":
        end = min(options.min_lr, options.decoder_lr)
        decoder_lr = warmup_cosine(step, steps, options.decoder_lr, end, warmup)
    for group in optimizer.param_groups:
        group["lr"] = decoder_lr if group["name"] == "decoder" else lr
        group["weight_decay"] = decay if group["name"] == "weights" else 0.0
    return {"lr": lr, "decoder_lr": decoder_lr, "weight_decay": decay}
