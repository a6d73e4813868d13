"""TIPSv2 (arXiv 2604.12012) through transformers: patch tokens in the space of its text encoder.

As in the authors' zero-shot segmentation, the tokens are MaskCLIP's: in the last layer every patch attends to itself.
Images are not normalised; class and register tokens are dropped.
"""

import re
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Tipsv2TextConfig, Tipsv2TextModel, Tipsv2VisionConfig, Tipsv2VisionModel

from fusioner.encoders.hub import Checkpoint, locate, read_json
from fusioner.encoders.image import PatchTransformer
from fusioner.encoders.pretrained import build_model, read_config, tower_config
from fusioner.encoders.text import PretrainedText, load_tokenizer

_BLOCK = re.compile(r"vision_encoder\.blocks\.\d+\.norm1\.weight")
_NO_MEAN, _NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class TipsVision(PatchTransformer):
    """Value tokens of TIPSv2's image encoder, after the final LayerNorm."""

    text_aligned = True

    def __init__(self, model: Any, name: str) -> None:
        super().__init__(model, name, _NO_MEAN, _NO_STD)
        last = model.encoder.layer[-1]
        last.attention = _Values(last.attention).train(False)


class TipsText(PretrainedText):
    """Mean of the last states over the text's tokens; texts are lower-cased."""

    lowercase = True

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        return self.model(input_ids=ids, attention_mask=mask).pooler_output


class _Values(nn.Module):
    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj

    def forward(self, hidden_states: Float[Tensor, "b n c"], **_: Any) -> tuple[Float[Tensor, "b n c"], None]:
        return self.o_proj(self.v_proj(hidden_states)), None


def load_tips_image(source: str, name: str, model_types: Sequence[str]) -> TipsVision:
    """Load the image encoder of a TIPSv2 repository or folder."""
    checkpoint = locate(source, name)
    state = checkpoint.read()
    config = tower_config(read_config(checkpoint, model_types), "vision_config")
    if authors := _authors_config(checkpoint):
        width, mlp = authors["embed_dim"], "vision_encoder.blocks.0.mlp."
        config = Tipsv2VisionConfig(
            hidden_size=width,
            num_hidden_layers=sum(bool(_BLOCK.fullmatch(key)) for key in state),
            num_attention_heads=authors["text_num_heads"],  # the same in all published sizes
            mlp_ratio=max(len(value) for key, value in state.items() if key.startswith(mlp)) / width,
            image_size=authors["img_size"],
            patch_size=authors["patch_size"],
            num_register_tokens=authors["num_register_tokens"],
        )
    return TipsVision(build_model(Tipsv2VisionModel, config, state, name), name)


def load_tips_text(source: str, name: str, model_types: Sequence[str]) -> TipsText:
    """Load the text encoder of a TIPSv2 repository or folder."""
    checkpoint = locate(source, name, tokenizer=True)
    config = tower_config(read_config(checkpoint, model_types), "text_config")
    if authors := _authors_config(checkpoint):
        names = {"hidden_size": "text_hidden_size", "intermediate_size": "text_mlp_dim"}
        names |= {"num_hidden_layers": "text_num_layers", "num_attention_heads": "text_num_heads"}
        names |= {"vocab_size": "vocab_size", "max_position_embeddings": "max_len"}
        config = Tipsv2TextConfig(**{key: authors[name] for key, name in names.items()})
    model = build_model(Tipsv2TextModel, config, checkpoint.read(), name)
    return TipsText(model, load_tokenizer(checkpoint.folder, name), name)


def _authors_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the flat configuration of the authors' repositories; empty for one of transformers."""
    config = read_json(checkpoint.folder / "config.json")
    return config if "vision_fn" in config else {}
