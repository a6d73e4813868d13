"""Transformers shipped in the package: DINOv2 ViT-S/14 (blocks 0-9) and MiniLM.

See `fusioner/weights/README.md`; `tools/build_weights.py` rebuilds their files. Stored in fp16, computed in fp32.
"""

from collections.abc import Mapping

from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from fusioner.encoders.hub import build_model, read_tensors
from fusioner.encoders.image import PatchTransformer
from fusioner.encoders.text import PooledText
from fusioner.errors import FusionerError
from fusioner.weights import weights_file


def dinov2_s_embedded() -> PatchTransformer:
    """Build `dinov2-s-embedded`: (B, 384, H // 14, W // 14) unit-length tokens.

    A token is the output of block 9 (of 0-11) through a LayerNorm without weights: the trained one belongs to block 11,
    which is not included.
    """
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=10,
        num_attention_heads=6,
        image_size=518,  # 37 x 37 positions
        patch_size=14,
        use_mask_token=False,
        layer_norm_eps=1e-6,
    )
    model = build_model(Dinov2Model, config, read_weights("dinov2_s.safetensors"), "dinov2-s-embedded", exact=True)
    return PatchTransformer(model, "dinov2-s-embedded")


def minilm_embedded() -> PooledText:
    """Build `minilm-embedded`: all-MiniLM-L6-v2 (English), mean-pooled to (N, 384) unit vectors."""
    tokenizer = weights_file("minilm.tokenizer.json").read_text(encoding="utf-8")
    return build_minilm(read_weights("minilm.safetensors"), tokenizer)


def build_minilm(state: Mapping[str, Tensor], tokenizer: str) -> PooledText:
    """Build MiniLM from its weights and the content of its tokenizer.json."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = build_model(BertModel, config, state, "minilm-embedded", exact=True)
    # 256 is the sentence model's limit; the tokenizer file says 128 and pads everything to that.
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer), model_max_length=256, pad_token="[PAD]", unk_token="[UNK]"
    )
    return PooledText(model, fast, "minilm-embedded")


def read_weights(name: str) -> dict[str, Tensor]:
    """Return the tensors of a packaged safetensors file in fp32; FusionerError if it is missing or damaged."""
    path = weights_file(name)
    try:
        return {key: tensor.float() for key, tensor in read_tensors(path).items()}
    except FusionerError as error:
        raise FusionerError(f"{error}: reinstall fusioner") from error
