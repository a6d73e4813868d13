"""Frozen text encoders of the transformers library: strings in, one unit-length vector each out."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, PretrainedConfig, PreTrainedModel, SiglipTextModel

from fusioner.encoders.base import Frozen, state_digest
from fusioner.encoders.hub import load_pretrained, locate, model_settings, quietly, read_config
from fusioner.errors import FusionerError

BATCH = 64
"""Strings encoded at once; bounds the memory that hundreds of labels times templates take."""

_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


class TextModel(Frozen, ABC):
    """Base of the text adapters: batches, tokenizes, `embed`s, and scales to unit length.

    Texts longer than the model's context are cut. Attributes: see `fusioner.encoders.base.TextEncoder`.
    """

    padding: str = "longest"

    def __init__(self, model: PreTrainedModel, tokenizer: Any, name: str, dim: int, context: int) -> None:
        super().__init__()
        self.model, self.name, self.dim = model, name, dim
        self.context = min(context, tokenizer.model_max_length)
        self._tokenizer = tokenizer
        self._digest: str | None = None
        self.freeze()

    @abstractmethod
    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Token ids and their mask (1: text, 0: padding) -> one vector a text, of any length."""

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Any number of strings -> (n, d), unit length, fp32, in the order given, on the model's device."""
        batches = [self._encode(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return torch.cat(batches) if batches else torch.empty(0, self.dim, device=self.model.device)

    def _encode(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        tokens = self._tokenizer(
            self.clean(texts),
            padding=self.padding,
            truncation=True,
            max_length=self.context,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        return F.normalize(self.embed(tokens["input_ids"], tokens["attention_mask"]).float(), dim=1)

    def clean(self, texts: Sequence[str]) -> list[str]:
        """What is done to a string before the tokenizer sees it."""
        return list(texts)

    def fingerprint(self) -> str:
        """Sha256 (hex) of the weights, the tokenizer and the pooling; computed once."""
        if self._digest is None:
            settings = [type(self).__name__, self.padding, self.context, model_settings(self.model.config)]
            self._digest = state_digest(self, [*settings, *self.extra(), _tokenizer_settings(self._tokenizer)])
        return self._digest

    def extra(self) -> list[str]:
        """Further settings that decide the vectors."""
        return []

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._digest = None  # .half() and its like change the weights
        return super()._apply(fn, recurse)


class ClipText(TextModel):
    """CLIP: `text_projection` of the state at the end-of-text token."""

    def __init__(self, model: CLIPTextModelWithProjection, tokenizer: Any, name: str) -> None:
        dim = model.text_projection.out_features
        super().__init__(model, tokenizer, name, dim, model.config.max_position_embeddings)

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """The library's own `text_embeds`."""
        return self.model(input_ids=ids, attention_mask=mask).text_embeds


class SiglipText(TextModel):
    """SigLIP and SigLIP 2: lower case, padded to the full context and read without a mask, as they were trained."""

    padding = "max_length"

    def __init__(self, model: SiglipTextModel, tokenizer: Any, name: str) -> None:
        super().__init__(model, tokenizer, name, model.head.out_features, model.config.max_position_embeddings)

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Lower case: not every published tokenizer file does it, and the training did."""
        return [text.lower() for text in texts]

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """The head on the last token's state, which padding may be."""
        return self.model(input_ids=ids).pooler_output


class PooledText(TextModel):
    """BERT and its kin, sentence encoders included: the mean of the last states over the text's own tokens.

    Plain BERT and RoBERTa were trained to no sentence vector; the mean serves them better than the untrained [CLS]
    state, so one rule holds for all. Only a sentence-transformers folder that asks for [CLS] gets it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, name: str, *, reserved: int = 0, cls: bool = False
    ) -> None:
        config = model.config
        super().__init__(model, tokenizer, name, config.hidden_size, config.max_position_embeddings - reserved)
        self._cls = cls

    def embed(self, ids: Int[Tensor, "n t"], mask: Int[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Mean over the attention mask, or the first state."""
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (n, t, d)
        if self._cls:
            return states[:, 0]
        weights = mask.unsqueeze(-1).to(states.dtype)  # (n, t, 1)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    def extra(self) -> list[str]:
        """Which pooling."""
        return ["cls" if self._cls else "mean"]


@dataclass(frozen=True)
class TextFamily:
    """How one transformers `model_type` becomes a text encoder; reserved: positions the model never uses for tokens."""

    model: str
    reserved: int = 0
    options: dict[str, Any] = field(default_factory=dict)


_NO_POOLER = {"add_pooling_layer": False}
_CLIP, _SIGLIP = TextFamily("CLIPTextModelWithProjection"), TextFamily("SiglipTextModel")
TEXT_FAMILIES: dict[str, TextFamily] = {
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_text_model": _SIGLIP,
    "bert": TextFamily("BertModel", options=_NO_POOLER),
    "roberta": TextFamily("RobertaModel", reserved=2, options=_NO_POOLER),  # positions count from padding_idx + 1
    "xlm-roberta": TextFamily("XLMRobertaModel", reserved=2, options=_NO_POOLER),
    "mpnet": TextFamily("MPNetModel", reserved=2, options=_NO_POOLER),
    "distilbert": TextFamily("DistilBertModel"),
}
"""transformers `model_type` -> how to load it."""


def load_text_encoder(source: str, name: str, kinds: tuple[str, ...] | None = None) -> TextModel:
    """A frozen text encoder from a folder or a hub repository in transformers' format.

    Args:
        source: folder or hub id.
        name: the zoo name it is built from; kept as `.name`.
        kinds: the `model_type`s that fit the name; None takes any of `TEXT_FAMILIES`.

    Raises:
        FusionerError: the source cannot be had, is of another kind, lacks a tokenizer, or its weights are incomplete.
    """
    folder = locate(source, name)
    config = read_config(folder, name)
    kind = config.model_type
    if kind not in (kinds or TEXT_FAMILIES):
        known = ", ".join(kinds or TEXT_FAMILIES)
        raise FusionerError(f"{name}: {folder} holds a model of type {kind!r}, not a text encoder of type {known}")
    family = TEXT_FAMILIES[kind]
    tokenizer = load_tokenizer(folder, name)
    model = load_pretrained(getattr(transformers, family.model), folder, _text_config(config), name, **family.options)
    if isinstance(model, CLIPTextModelWithProjection):
        return ClipText(model, tokenizer, name)
    if isinstance(model, SiglipTextModel):
        return SiglipText(model, tokenizer, name)
    encoder = PooledText(model, tokenizer, name, reserved=family.reserved, cls=_wants_cls(folder))
    if trained := _json(folder / "sentence_bert_config.json").get("max_seq_length"):
        encoder.context = min(encoder.context, int(trained))
    return encoder


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    text = getattr(config, "text_config", config)
    if config.model_type == "clip":
        text.projection_dim = config.projection_dim  # the towers' own entries are often left at the default
    return text


def load_tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer of a folder; FusionerError, speaking of `name`, when there is none or it cannot be read."""
    # Without these files transformers may build an empty tokenizer, which maps every word to "unknown".
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        raise FusionerError(
            f"{name}: {folder} has no tokenizer (tokenizer.json, or vocab.txt or vocab.json and its kin)"
        )
    try:
        with quietly():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FusionerError(f"{name}: the tokenizer in {folder} cannot be read ({reason})") from error


def _wants_cls(folder: Path) -> bool:
    """Whether a sentence-transformers folder pools by its [CLS] token."""
    pooling = _json(folder / "1_Pooling" / "config.json")
    return bool(pooling.get("pooling_mode_cls_token")) or pooling.get("pooling_mode") == "cls"


def _json(path: Path) -> dict[str, Any]:
    """An optional settings file; empty when it is missing or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tokenizer_settings(tokenizer: Any) -> Any:
    """A tokenizer as JSON; without the padding and truncation that each call sets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sorted(tokenizer.get_vocab().items())
    return {key: value for key, value in json.loads(backend.to_str()).items() if key not in ("padding", "truncation")}
