"""What training minimises.

Letters: B images, P prompts of each, h w pixels at which the loss is taken. Each loss is a sum over pixels divided by
`count`; given the count of a whole batch, the losses of its parts (devices, accumulation) add up to the batch's own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor


def masked_bce(
    logits: Float[Tensor, "*b h w"],
    target: Float[Tensor, "*b h w"],
    ignore: Bool[Tensor, "*b h w"] | Integer[Tensor, "*b h w"],
    count: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of sigmoid(logits), averaged over the pixels that are not ignored (paper section 3.4).

    Args:
        logits: any finite values; target: 0 or 1; ignore: non-zero where a pixel counts nowhere.
        count: what to divide the sum by; None is the number of pixels that count (0 gives a loss of 0).
    """
    counts = (ignore == 0).to(logits.dtype)
    total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * counts).sum()
    return total / (counts.sum().clamp_min(1) if count is None else count)


def choice(
    logits: Float[Tensor, "b p h w"],
    labels: Integer[Tensor, "b h w"],
    closed: Bool[Tensor, "b p #h #w"],
    count: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the choice among an image's prompts and background; beyond the paper.

    Sigmoids answer each prompt alone; this makes prompts of one image compete for its pixels. Background is a logit of
    0, which is what a probability of 0.5 has.

    Args:
        labels: 0 background (also every class not prompted), i the i-th prompt, -1 ignored.
        closed: prompts that cannot be chosen, or where they cannot.
        count: what to divide the sum by; None is the number of pixels not ignored.
    """
    open_to_choice = logits.masked_fill(closed, -torch.inf)
    all_logits = torch.cat([torch.zeros_like(logits[:, :1]), open_to_choice], dim=1)  # (b, 1 + p, h, w)
    total = F.cross_entropy(all_logits, labels.long(), ignore_index=-1, reduction="sum")
    return total / ((labels >= 0).sum().clamp_min(1) if count is None else count)
