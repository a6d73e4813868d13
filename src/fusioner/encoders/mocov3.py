"""MoCo v3 vision transformers, from the checkpoint files of https://github.com/facebookresearch/moco-v3.

A file is `{"state_dict": {"module.base_encoder.*": ...}}` with timm's keys, fixed 2-D sine-cosine position embeddings
stored like learned ones, LayerNorm eps 1e-6, and 12 heads in both ViT-S and ViT-B.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import ViTConfig, ViTModel

from fusioner.encoders.hub import read_tensors
from fusioner.encoders.image import PatchTransformer
from fusioner.encoders.pretrained import build_model, rename_keys
from fusioner.errors import FusionerError

_PREFIXES = ("module.base_encoder.", "base_encoder.", "module.momentum_encoder.", "momentum_encoder.", "module.", "")
_OTHER_PARTS = ("head.", "module.", "base_encoder.", "momentum_encoder.", "predictor.")
_RULES = {
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj\.(\w+)": r"embeddings.patch_embeddings.projection.\1",
    r"norm\.(\w+)": r"layernorm.\1",
    r"blocks\.(\d+)\.norm1\.(\w+)": r"layers.\1.layernorm_before.\2",
    r"blocks\.(\d+)\.norm2\.(\w+)": r"layers.\1.layernorm_after.\2",
    r"blocks\.(\d+)\.attn\.qkv\.(\w+)": r"layers.\1.attention.{qkv}_proj.\2",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": r"layers.\1.attention.o_proj.\2",
    r"blocks\.(\d+)\.(mlp\.fc[12]\.\w+)": r"layers.\1.\2",
}


def remap_mocov3(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the base encoder's keys (the momentum encoder's if there is no other) to those of `ViTModel`, in fp32."""
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}patch_embed.proj.weight" in state), None)
    if prefix is None:
        raise FusionerError(
            "the checkpoint holds no MoCo v3 vision transformer (no key ends in patch_embed.proj.weight)"
        )
    encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    encoder = {key: value for key, value in encoder.items() if not key.startswith(_OTHER_PARTS)}
    return rename_keys(encoder, _RULES, "MoCo v3 vision transformer")


def read_mocov3(path: str | Path) -> dict[str, Tensor]:
    """Return the `state_dict` of a checkpoint file; no code in it is run."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FusionerError(f"there is no MoCo v3 checkpoint {path}")
    content = read_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FusionerError(f"{path} is not a MoCo v3 checkpoint: it holds no state_dict of tensors")
    return dict(state)


def load_mocov3(source: str | Path, name: str, width: int | None = None) -> PatchTransformer:
    """Load the image encoder of a `.pth.tar` file; `width` is the expected token width, None accepts any."""
    state = remap_mocov3(read_mocov3(source))
    layers = [len(value) for key, value in state.items() if key.endswith("mlp.fc1.bias")]
    if "embeddings.position_embeddings" not in state or not layers:
        raise FusionerError(f"the MoCo v3 checkpoint {source} lacks its position embedding or its blocks")
    channels, _, _, patch = state["embeddings.patch_embeddings.projection.weight"].shape
    if width not in (None, channels):
        raise FusionerError(f"{name}: {source} has tokens of width {channels}, not {width}")
    config = ViTConfig(
        hidden_size=channels,
        intermediate_size=layers[0],
        num_hidden_layers=len(layers),
        num_attention_heads=12,
        image_size=patch * round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    model = build_model(ViTModel, config, state, f"{name} ({source})", exact=True)
    return PatchTransformer(model, name)
