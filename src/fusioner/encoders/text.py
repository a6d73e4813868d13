"""Frozen text encoders of the transformers library: strings in, one unit-length vector each out."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from fusioner.encoders.base import TextModel, portable_tokenizer
from fusioner.encoders.hub import has_tokenizer, locate, read_json
from fusioner.encoders.open_clip import is_openai, remap_openai_text, text_config
from fusioner.encoders.pretrained import build_model, fingerprinted_settings, loading, read_config, tower_config
from fusioner.errors import FusionerError


class PretrainedText(TextModel, ABC):
    """Base of the text encoders of transformers."""

    def __init__(self, model: Any, tokenizer: Any, name: str, reserved: int = 0) -> None:
        """`reserved`: positions that the model never uses for tokens."""
        super().__init__()
        self.model = model
        projection = getattr(model, "text_projection", None) or getattr(model, "head", None)
        self.name, self.dim = name, projection.out_features if projection else model.config.hidden_size
        self.context = min(model.config.max_position_embeddings - reserved, tokenizer.model_max_length)
        self._tokenizer, self.pad = tokenizer, (tokenizer.pad_token, tokenizer.pad_token_id)
        self.freeze()

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n t"], Int[Tensor, "n t"]]:
        tokens = self._tokenizer(
            list(texts),
            padding=self.padding,
            padding_side="right",
            truncation=True,
            max_length=self.context,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return tokens["input_ids"], tokens["attention_mask"]

    def settings(self) -> dict[str, Any]:
        return fingerprinted_settings(self.model.config)

    def tokenizer_json(self) -> Any:
        """Return the content of tokenizer.json; of a tokenizer implemented in Python, its sorted vocabulary."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return sorted(self._tokenizer.get_vocab().items())
        return portable_tokenizer(backend)


class ClipText(PretrainedText):
    """CLIP: projection of the state at the end-of-text token."""

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        return self.model(input_ids=ids, attention_mask=mask).text_embeds


class SiglipText(PretrainedText):
    """SigLIP and SigLIP 2: lower case, padded to the full context and read without a mask, as in training."""

    padding = "max_length"
    lowercase = True  # not every published tokenizer does so

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        return self.model(input_ids=ids).pooler_output  # the head on the last token's state, padding or not


class PooledText(PretrainedText):
    """BERT-like models, sentence encoders included: mean of the last states over the text's tokens.

    BERT and RoBERTa were not trained for sentence vectors, and the mean suits them better than the [CLS] state. Only
    sentence-transformers folders that request [CLS] get it.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, reserved: int = 0, cls: bool = False) -> None:
        super().__init__(model, tokenizer, name, reserved)
        self.pooling = "cls" if cls else "mean"

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, t, d)
        if self.pooling == "cls":
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)  # (n, t, 1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


@dataclass(frozen=True)
class TextBackboneSpec:
    """Specification of a text encoder for a transformers `model_type`.

    Attributes:
        model: class in transformers.
        encoder: adapter class.
        reserved: positions that the model never uses for tokens.
    """

    model: str
    encoder: Callable[..., PretrainedText] = PooledText
    reserved: int = 0


_CLIP = TextBackboneSpec("CLIPTextModelWithProjection", ClipText)
_SIGLIP = TextBackboneSpec("SiglipTextModel", SiglipText)
TEXT_BACKBONES: dict[str, TextBackboneSpec] = {
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "metaclip_2": TextBackboneSpec("MetaClip2TextModelWithProjection", ClipText),
    "siglip": _SIGLIP,
    "siglip_text_model": _SIGLIP,
    "bert": TextBackboneSpec("BertModel"),
    "roberta": TextBackboneSpec("RobertaModel", reserved=2),  # positions start at padding_idx + 1
    "xlm-roberta": TextBackboneSpec("XLMRobertaModel", reserved=2),
    "mpnet": TextBackboneSpec("MPNetModel", reserved=2),
    "distilbert": TextBackboneSpec("DistilBertModel"),
}
"""transformers `model_type` -> how to load it."""


def load_text_encoder(
    source: str, name: str, model_types: Sequence[str] = (), *, fallback: str = "", open_clip: bool = False
) -> PretrainedText:
    """Load a frozen text encoder from a folder or a Hugging Face repository; arguments as of `load_image_encoder`."""
    checkpoint = locate(source, name, fallback, tokenizer=True, open_clip=open_clip)
    config = read_config(checkpoint, model_types or TEXT_BACKBONES)
    folder, spec = checkpoint.folder, TEXT_BACKBONES[config.model_type]
    tokenizer, state = load_tokenizer(folder, name), checkpoint.read()
    if is_openai(state):
        state = remap_openai_text(state)
    model = build_model(getattr(transformers, spec.model), tower_config(config, "text_config"), state, name)
    if spec.encoder is not PooledText:
        return spec.encoder(model, tokenizer, name)
    pooling = read_json(folder / "1_Pooling" / "config.json")
    cls = bool(pooling.get("pooling_mode_cls_token")) or pooling.get("pooling_mode") == "cls"
    encoder = PooledText(model, tokenizer, name, reserved=spec.reserved, cls=cls)
    if trained := read_json(folder / "sentence_bert_config.json").get("max_seq_length"):
        encoder.context = min(encoder.context, int(trained))
    return encoder


def clip_text_from_openai(
    state: Mapping[str, Tensor], tokenizer: Any, *, heads: int | None = None, name: str = "clip-text-openai"
) -> ClipText:
    """Build a CLIP text encoder from tensors under OpenAI's keys and a transformers tokenizer."""
    config, mapped = text_config(state, heads), remap_openai_text(state)
    return ClipText(build_model(CLIPTextModelWithProjection, config, mapped, name, exact=True), tokenizer, name)


def load_tokenizer(folder: Path, name: str) -> Any:
    """Load the tokenizer of a folder; FusionerError, naming `name`, if there is none or it cannot be read."""
    if not has_tokenizer(folder):
        raise FusionerError(f"{name}: {folder} has no tokenizer (tokenizer.json, vocab.txt, vocab.json or a .model)")
    with loading(f"{name}: the tokenizer in {folder} cannot be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
