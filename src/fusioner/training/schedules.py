"""How learning rate and weight decay move, as functions of the step (arXiv 1608.03983, as DINO schedules both)."""

import math


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `steps`."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / max(1, steps)))


def warmup_cosine(step: int, steps: int, peak: float, end: float, warmup: int = 0) -> float:
    """From 0 up a straight line that reaches `peak` at step `warmup - 1`, then `cosine` down to `end` at `steps`."""
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    return cosine(step - warmup, steps - warmup, peak, end)
