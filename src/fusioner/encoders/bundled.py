"""The transformers that ship inside the package and need no network: DINOv2 ViT-S/14 (blocks 0-9) and MiniLM.

`fusioner/weights/README.md` is their card; `tools/build_weights.py` rebuilds their files. Stored in fp16, run in fp32.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from fusioner.encoders.hub import quietly
from fusioner.encoders.image import PatchTransformer
from fusioner.encoders.text import PooledText
from fusioner.errors import FusionerError


def dinov2_s_embedded() -> PatchTransformer:
    """The zoo's `dinov2-s-embedded`: (B, 384, H // 14, W // 14) unit-length tokens.

    A token is the output of block 9 (of 0-11) through a LayerNorm without weights of its own: the trained one belongs
    to block 11, which is not here. FusionerError when the installation lacks the weights or they are broken.
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
    model = load_strictly(Dinov2Model, config, read_weights("dinov2_s.safetensors"))
    return PatchTransformer(model, "dinov2-s-embedded", interpolate=False)  # this class always interpolates


def minilm_embedded() -> PooledText:
    """The zoo's `minilm-embedded`: all-MiniLM-L6-v2, mean-pooled to (N, 384) unit vectors.

    Trained on English: another language is understood only where it spells alike. Texts are cut at 256 word pieces.
    FusionerError when the installation lacks the weights or they are broken.
    """
    tokenizer = weights_file("minilm.tokenizer.json").read_text(encoding="utf-8")
    return build_minilm(read_weights("minilm.safetensors"), tokenizer)


def build_minilm(state: Mapping[str, Tensor], tokenizer: str) -> PooledText:
    """MiniLM from its weights and the text of its tokenizer.json."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    model = load_strictly(BertModel, config, state, add_pooling_layer=False)
    # 256 is the sentence model's own limit; the file itself says 128, and pads everything to that.
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer), model_max_length=256, pad_token="[PAD]", unk_token="[UNK]"
    )
    return PooledText(model, fast, "minilm-embedded")


def weights_file(name: str) -> Path:
    """Path of a file shipped in `fusioner.weights`; FusionerError when the installation lacks it."""
    path = Path(str(resources.files("fusioner.weights"))) / name
    if not path.is_file():
        raise FusionerError(f"the embedded file {path} is missing: reinstall fusioner or run tools/build_weights.py")
    return path


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a shipped safetensors file, in fp32; FusionerError when it is missing or broken."""
    path = weights_file(name)
    try:
        return {key: tensor.float() for key, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise FusionerError(f"the embedded file {path} is broken ({error}): reinstall fusioner") from error


def load_strictly(
    kind: type[PreTrainedModel], config: PretrainedConfig, state: Mapping[str, Tensor], **options: Any
) -> PreTrainedModel:
    """A transformers model with exactly these weights, in eval mode.

    Through `from_pretrained`, which maps the published key names onto those of the installed version.
    FusionerError unless every tensor is there, known and in shape.
    """
    with quietly():
        loaded: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, report = loaded
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *(one[0] for one in report["mismatched_keys"])]
    if wrong:
        raise FusionerError(f"the weights do not fit {kind.__name__}: {len(wrong)} tensors, first {min(wrong)}")
    return model
