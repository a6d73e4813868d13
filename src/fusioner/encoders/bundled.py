"""Transformers shipped in the package: DINOv2 ViT-S/14 (blocks 0-9) and MiniLM, in plain PyTorch.

See `fusioner/weights/README.md`; `tools/build_weights.py` rebuilds their files. Stored in fp16, computed in fp32.
Modules and settings have the names of transformers' models, so that fingerprints are those of the same weights there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from fusioner.encoders.base import IMAGENET_MEAN, IMAGENET_STD, DenseEncoder, TextModel, portable_tokenizer
from fusioner.errors import FusionerError
from fusioner.weights import weights_file

WIDTH, MLP_WIDTH = 384, 4 * 384  # of both
POSITIONS = 37  # rows and columns of DINOv2's position embeddings
DINOV2_KEYS = {f".attention.attention.{name}.": f".attention.{name[0]}_proj." for name in ("query", "key", "value")}
DINOV2_KEYS |= {".attention.output.dense.": ".attention.o_proj."}
"""Part of a key in the file -> name of the module."""


class Dinov2(DenseEncoder):
    """DINOv2 (Oquab et al., arXiv 2304.07193): (B, 384, H // 14, W // 14) unit-length tokens.

    A token is the output of block 9 (of 0-11) through a LayerNorm without weights: the trained one belongs to block 11,
    which is not included.
    """

    kind = "PatchTransformer"

    def __init__(self) -> None:
        super().__init__("dinov2-s-embedded", WIDTH, 14, IMAGENET_MEAN, IMAGENET_STD)
        with torch.device("meta"):
            self.model = _Dinov2()
        state = read_weights("dinov2_s.safetensors")
        for old, new in DINOV2_KEYS.items():
            state = {key.replace(old, new): tensor for key, tensor in state.items()}
        load_weights(self.model, state, "DINOv2-S")
        self.freeze()

    def settings(self) -> dict[str, Any]:
        sizes = {"num_hidden_layers": 10, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
        return {"model_type": "dinov2", "hidden_act": "gelu", "layer_norm_eps": 1e-6, **sizes}

    def tokens(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        return self.model(pixels)


class MiniLM(TextModel):
    """all-MiniLM-L6-v2 (English): mean of the last states over the text's tokens, (N, 384) unit vectors."""

    kind, name, dim, pooling = "PooledText", "minilm-embedded", WIDTH, "mean"
    context = 256  # the sentence model's limit; the tokenizer file says 128 and pads everything to that
    pad = ("[PAD]", 0)

    def __init__(self, state: Mapping[str, Tensor], tokenizer: str) -> None:
        """Build it from its weights and the content of its tokenizer.json."""
        super().__init__()
        with torch.device("meta"):
            self.model = _Bert()
        load_weights(self.model, state, "MiniLM")
        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.enable_truncation(self.context)
        self._tokenizer.enable_padding(pad_token=self.pad[0], pad_id=self.pad[1])
        self.freeze()

    def settings(self) -> dict[str, Any]:
        sizes = {"num_hidden_layers": 6, "num_attention_heads": 12, "max_position_embeddings": 512}
        tokens = {"pad_token_id": self.pad[1], "eos_token_id": None}
        return {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, **sizes, **tokens}

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        encoded = self._tokenizer.encode_batch(texts)
        return torch.tensor([one.ids for one in encoded]), torch.tensor([one.attention_mask for one in encoded])

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        states = self.model(ids, mask.bool())  # (n, t, d)
        weights = mask.unsqueeze(-1).to(states.dtype)  # (n, t, 1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    def tokenizer_json(self) -> dict[str, Any]:
        return portable_tokenizer(self._tokenizer)


def minilm_embedded() -> MiniLM:
    """Build `minilm-embedded`."""
    return MiniLM(read_weights("minilm.safetensors"), weights_file("minilm.tokenizer.json").read_text(encoding="utf-8"))


def read_weights(name: str) -> dict[str, Tensor]:
    """Return the tensors of a packaged safetensors file in fp32; FusionerError if it is missing or damaged."""
    path = weights_file(name)
    try:
        return {key: tensor.float() for key, tensor in load_file(path).items()}
    except Exception as error:  # SafetensorError, OSError
        raise FusionerError(f"the weights in {path} cannot be read ({error}): reinstall fusioner") from error


def load_weights(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load `state` into a module without copying; FusionerError, naming the model, if they do not fit."""
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise FusionerError(f"the weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error


def _attend(
    query: Float[Tensor, "b n c"],
    key: Float[Tensor, "b n c"],
    value: Float[Tensor, "b n c"],
    heads: int,
    mask: Bool[Tensor, "b 1 1 n"] | None = None,
) -> Float[Tensor, "b n c"]:
    query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2)


class _Dinov2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _PatchEmbeddings()
        self.encoder = _Layers(_Dinov2Block, 10)
        self.layernorm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        states, grid = self.embeddings(pixels)
        for block in self.encoder.layer:
            states = block(states)
        return self.layernorm(states[:, 1:]).transpose(1, 2).unflatten(2, grid)


class _Layers(nn.Module):
    def __init__(self, kind: type[nn.Module], depth: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(kind() for _ in range(depth))


class _PatchEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + POSITIONS**2, WIDTH))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, WIDTH, 14, 14)})

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n c"], torch.Size]:
        patches = self.patch_embeddings["projection"](pixels.to(self.cls_token.dtype))  # (b, c, gh, gw)
        grid = patches.shape[2:]
        first, others = self.position_embeddings.split([1, POSITIONS**2], dim=1)
        positions = _resize_positions(others.transpose(1, 2).unflatten(2, (POSITIONS, POSITIONS)), grid)
        states = (patches + positions).flatten(2).transpose(1, 2)
        return torch.cat([(self.cls_token + first).expand(states.shape[0], -1, -1), states], dim=1), grid


def _resize_positions(positions: Float[Tensor, "1 c h w"], grid: torch.Size) -> Float[Tensor, "1 c gh gw"]:
    """Interpolate bicubically, in exported graphs as matrix products: ONNX Runtime's own takes 5 % of the encoder."""
    if not torch.compiler.is_exporting():
        return F.interpolate(positions.float(), grid, mode="bicubic", align_corners=False).to(positions.dtype)
    rows, columns = map(_cubic_weights, grid)
    return rows @ positions @ columns.T


def _cubic_weights(size: int) -> Float[Tensor, "size positions"]:
    """Return the weights of `F.interpolate` (bicubic) from `POSITIONS` to `size`."""
    old = torch.arange(-2, POSITIONS + 2)  # the border is repeated
    place = (torch.arange(size, dtype=torch.float32) + 0.5) * (POSITIONS / size) - 0.5
    distance = (place[:, None] - old).abs()
    near = (1.25 * distance - 2.25) * distance**2 + 1  # Keys's kernel with a = -0.75
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    return weights @ F.one_hot(old.clamp(0, POSITIONS - 1), POSITIONS).float()


class _Dinov2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = nn.ModuleDict({f"{part}_proj": nn.Linear(WIDTH, WIDTH) for part in "qkvo"})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, MLP_WIDTH), "fc2": nn.Linear(MLP_WIDTH, WIDTH)})
        self.layer_scale1, self.layer_scale2 = _LayerScale(), _LayerScale()

    def forward(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        inputs = self.norm1(states)
        query, key, value = (self.attention[f"{part}_proj"](inputs) for part in "qkv")
        states = states + self.layer_scale1(self.attention["o_proj"](_attend(query, key, value, 6)))
        return states + self.layer_scale2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(states)))))


class _LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return states * self.lambda1


class _Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = _WordEmbeddings()
        self.encoder = _Layers(_BertBlock, 6)

    def forward(self, ids: Int[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, "n t c"]:
        states = self.embeddings(ids)
        for block in self.encoder.layer:
            states = block(states, mask[:, None, None])
        return states


class _WordEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Not nn.Embedding(...): its initial weights on the meta device would import torch._dynamo, four seconds.
        self.word_embeddings = nn.Embedding.from_pretrained(torch.empty(30522, WIDTH))
        self.position_embeddings = nn.Embedding.from_pretrained(torch.empty(512, WIDTH))
        self.token_type_embeddings = nn.Embedding.from_pretrained(torch.empty(2, WIDTH))
        self.LayerNorm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, ids: Int[Tensor, "n t"]) -> Float[Tensor, "n t c"]:
        positions = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + positions)


class _Residual(nn.Module):
    """Linear layer, residual connection and LayerNorm, as BERT ends both halves of a block."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, update: Float[Tensor, "n t m"], states: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        return self.LayerNorm(self.dense(update) + states)


class _BertBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        projections = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": projections, "output": _Residual(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, MLP_WIDTH)})
        self.output = _Residual(MLP_WIDTH)

    def forward(self, states: Float[Tensor, "n t c"], mask: Bool[Tensor, "n 1 1 t"]) -> Float[Tensor, "n t c"]:
        query, key, value = (projection(states) for projection in self.attention["self"].children())
        states = self.attention["output"](_attend(query, key, value, 12, mask), states)
        return self.output(F.gelu(self.intermediate["dense"](states)), states)
