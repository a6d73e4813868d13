"""The optimiser of the official recipe: AdamW on the fusion, Adam on the decoder."""

import torch
from torch import Tensor, nn

from fusioner.training.config import TrainConfig
from fusioner.training.schedules import cosine, warmup_cosine


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """One AdamW with three groups; without weight decay AdamW is Adam, so the decoder's group is the official Adam.

    Groups are named `weights` and `others` (biases, gains and other 1-d parameters of all that is not the decoder) and
    `decoder`.
    """
    fusion: list[Tensor] = []
    others: list[Tensor] = []
    decoder: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # a memory's
            continue
        if name.startswith("decoder."):
            decoder.append(parameter)
        else:
            (fusion if parameter.dim() >= 2 else others).append(parameter)
    betas = (config.beta1, 0.999)
    groups = [
        {"name": "weights", "params": fusion, "betas": betas},
        {"name": "others", "params": others, "betas": betas},
        {"name": "decoder", "params": decoder, "betas": (0.9, 0.999)},
    ]
    # The fused kernel is the fastest, but unscales fp16 gradients itself, which clipping must do before.
    fused = next(model.parameters()).device.type in ("cpu", "cuda") and config.precision != "16"
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=fused)


def set_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps: int) -> dict[str, float]:
    """Give the groups the learning rates and the decay of a step; returns them for the log."""
    warmup = round(config.warmup * steps)
    lr = warmup_cosine(step, steps, config.lr, config.min_lr, warmup)
    decay = cosine(step, steps, config.weight_decay, config.weight_decay_end)
    decoder_lr = config.decoder_lr
    if config.decoder_schedule == "cosine":
        end = min(config.min_lr, config.decoder_lr)
        decoder_lr = warmup_cosine(step, steps, config.decoder_lr, end, warmup)
    for group in optimizer.param_groups:
        group["lr"] = decoder_lr if group["name"] == "decoder" else lr
        group["weight_decay"] = decay if group["name"] == "weights" else 0.0
    return {"lr": lr, "decoder_lr": decoder_lr, "weight_decay": decay}
