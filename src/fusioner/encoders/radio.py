"""C-RADIO (arXiv 2412.07679, 2601.17237) through transformers: patch tokens after the last layer, before any adaptor.

The position embeddings cover 128 x 128 patches; other grids are interpolated from them as published.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import RadioConfig, RadioModel

from fusioner.encoders.hub import locate, read_json
from fusioner.encoders.image import CLIP_MEAN, CLIP_STD, PatchTransformer
from fusioner.encoders.pretrained import build_model, read_config
from fusioner.errors import FusionerError

_PREFIX = "radio_model.model."


def load_radio(source: str, name: str, heads: int) -> PatchTransformer:
    """Load a C-RADIO repository or folder.

    The authors' configuration is code, so that sizes are read off the tensors; `heads` per layer show in none of them.
    """
    checkpoint = locate(source, name)
    state = checkpoint.read()
    if "model_type" in read_json(checkpoint.folder / "config.json"):
        config = read_config(checkpoint, ("radio",))
    else:
        config = _config(state, heads, f"{name}: {checkpoint.weights}")
    model = build_model(RadioModel, config, state, name)
    model.make_preprocessor_external()  # the encoder normalises
    return PatchTransformer(model, name, CLIP_MEAN, CLIP_STD)


def _config(state: Mapping[str, Tensor], heads: int, where: str) -> RadioConfig:
    needed = ("patch_generator.embedder.weight", "patch_generator.pos_embed", "patch_generator.cls_token.token")
    keys = [*(_PREFIX + key for key in needed), "radio_model.summary_idxs"]
    if missing := [key for key in keys if key not in state]:
        raise FusionerError(f"{where} does not hold a C-RADIO: it lacks {missing[0]}")
    width, patch_dim = state[f"{_PREFIX}patch_generator.embedder.weight"].shape
    patch = round((patch_dim / 3) ** 0.5)
    tokens = len(state[f"{_PREFIX}patch_generator.cls_token.token"])
    grid = round(state[f"{_PREFIX}patch_generator.pos_embed"].shape[1] ** 0.5)
    summary = state["radio_model.summary_idxs"].tolist()
    return RadioConfig(
        hidden_size=width,
        num_hidden_layers=sum(key.endswith(".attn.qkv.weight") for key in state),
        num_attention_heads=heads,
        mlp_ratio=len(state[f"{_PREFIX}blocks.0.mlp.fc1.weight"]) / width,
        patch_size=patch,
        max_img_size=grid * patch,
        num_cls_tokens=max(summary) + 1,  # no matter: classes and registers are dropped alike
        num_registers=tokens - max(summary) - 1,
        summary_idxs=summary,
    )
