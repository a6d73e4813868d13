"""Cross-modal fusion: a pre-norm transformer over [visual; text] tokens (paper section 3.2).

Letters: B images, N visual tokens, K labels, W width. Parameter names are the official checkpoint's.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fusioner.model.config import FusionerConfig


class Attention(nn.Module):
    """Multi-head self-attention with one fused qkv projection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n w"], mask: Bool[Tensor, "n n"] | None) -> Float[Tensor, "b n w"]:
        """`mask[i, j]`: token i attends to token j; None: all tokens attend to all tokens."""
        b, n, w = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(out.transpose(1, 2).reshape(b, n, w))


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per sample while training (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.rate
        return x * keep / (1.0 - self.rate)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: FusionerConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn = Attention(config.width, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "b n w"], mask: Bool[Tensor, "n n"] | None) -> Float[Tensor, "b n w"]:
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Fusion(nn.Module):
    """Unit-length visual tokens (B, N, Dv) and label embeddings (B, K, Dt) -> patches (B, N, W), classes (B, K, C).

    "fusioner" (the paper's early fusion): all tokens attend to all tokens. "late" (the ablation of the paper's Table 1,
    as we read its "fuse after the visual decoder"): the same transformer with visual and text tokens masked from each
    other, so that they first meet in the cosine head after the decoder. Both have the same parameters, so the
    comparison isolates the fusion.
    """

    def __init__(self, config: FusionerConfig) -> None:
        super().__init__()
        width = config.width
        self.late = config.method == "late"
        self.visual_proj = nn.Sequential(
            nn.LayerNorm(config.visual_dim), nn.Linear(config.visual_dim, width), nn.LayerNorm(width)
        )
        self.text_proj = nn.Sequential(nn.LayerNorm(config.text_dim), nn.Linear(config.text_dim, width))
        self.cls_emb = nn.Parameter(torch.zeros(1, width))
        rates = torch.linspace(0.0, config.drop_path, config.layers).tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, config.decoder_widths[-1]))
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(
        self,
        visual: Float[Tensor, "b n dv"],
        text: Float[Tensor, "bm k dt"],
        extra: Float[Tensor, "b m n w"] | None = None,
    ) -> tuple[Float[Tensor, "bm n w"], Float[Tensor, "bm k c"]]:
        """With `extra` the text is (B * M, K, Dt): each image is fused M times, and extra[:, m] (the guidance of the
        similarity maps) is added to its projected tokens in the m-th fusion."""
        n = visual.shape[1]
        patches = self.visual_proj(visual)
        if extra is not None:
            patches = (patches[:, None] + extra).flatten(0, 1)
        labels = self.text_proj(text) + self.cls_emb
        x = torch.cat([patches, labels], dim=1)
        mask = self._late_mask(n, labels.shape[1], x.device) if self.late else None
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return x[:, :n] @ self.proj_patch, x[:, n:] @ self.proj_classes

    @staticmethod
    def _late_mask(n: int, k: int, device: torch.device) -> Bool[Tensor, "m m"]:
        is_text = torch.arange(n + k, device=device) >= n
        return is_text[:, None] == is_text[None, :]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
