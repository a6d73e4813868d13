"""Training losses.

Letters: B images, P prompts, h w loss size. Each loss is a sum over pixels divided by `count`; with the count of a
whole batch, the losses of its parts (devices, micro-batches) add up to the batch's.
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
    """Return the binary cross-entropy of sigmoid(logits), averaged over pixels not ignored (paper section 3.4).

    Args:
        logits: finite values; target: 0 or 1; ignore: non-zero at excluded pixels.
        count: divisor of the sum; None: the number of pixels not ignored (a loss of 0 if there are none).
    """
    counts = (ignore == 0).to(logits.dtype)
    total = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * counts).sum()
    return total / (counts.sum().clamp_min(1) if count is None else count)


def multiclass_ce(
    logits: Float[Tensor, "b p h w"],
    labels: Integer[Tensor, "b h w"],
    padded: Bool[Tensor, "b p"],
    count: Float[Tensor, ""] | float | None = None,
) -> Float[Tensor, ""]:
    """Return the cross-entropy over an image's prompts and background, whose logit is 0 (a probability of 0.5).

    Beyond the paper: sigmoids treat prompts independently, this makes those of one image compete for its pixels.

    Args:
        labels: 0 background (and every class not prompted), i the i-th prompt, -1 ignored.
        padded: prompts to leave out.
        count: divisor of the sum; None: the number of pixels not ignored.
    """
    prompts = logits.masked_fill(padded[..., None, None], -torch.inf)
    all_logits = torch.cat([torch.zeros_like(logits[:, :1]), prompts], dim=1)  # (b, 1 + p, h, w)
    total = F.cross_entropy(all_logits, labels.long(), ignore_index=-1, reduction="sum")
    return total / ((labels >= 0).sum().clamp_min(1) if count is None else count)
