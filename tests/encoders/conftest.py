"""Tiny random models in transformers' own format, saved to disk: what the adapters read is what the library wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    DistilBertConfig,
    DistilBertModel,
    MetaClip2Config,
    MetaClip2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

WORDS = ["a", "photo", "of", "the", "cat", "sofa", "dog", "red", "tree", "in", "scene", "there", "is", "close", "small"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS, ".", "-"])}
BODY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION: dict[str, Any] = {**BODY, "image_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = {**BODY, "vocab_size": len(VOCABULARY), "max_position_embeddings": 20, "pad_token_id": 0}
ENDS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3}

Saved = tuple[Path, Any]


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough that every token depends on its patch, its position and its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model.eval()


def make_image_model(kind: str) -> Any:
    """The library's model of a `model_type`, tiny and random."""
    if kind == "clip":
        return CLIPModel(CLIPConfig(vision_config=VISION, text_config={**TEXT, **ENDS}, projection_dim=24))
    if kind == "metaclip_2":
        config = MetaClip2Config(vision_config=VISION, text_config={**TEXT, **ENDS}, projection_dim=24)
        return MetaClip2Model(config)
    if kind == "siglip":
        return SiglipModel(SiglipConfig(vision_config=VISION, text_config={**TEXT, "projection_size": 32}))
    makers: dict[str, Callable[[], Any]] = {
        "vit": lambda: ViTModel(ViTConfig(**VISION), add_pooling_layer=False),
        "vit_mae": lambda: ViTMAEForPreTraining(
            ViTMAEConfig(**VISION, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
        ),
        "deit": lambda: DeiTModel(DeiTConfig(**VISION), add_pooling_layer=False),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION)),
        "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**VISION, num_register_tokens=3)
        ),
        "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=3)),
    }
    return makers[kind]()


def make_text_model(kind: str) -> Any:
    """The library's text model of a `model_type`, tiny and random."""
    if kind in ("clip", "metaclip_2", "siglip"):
        return make_image_model(kind)
    options = {**TEXT, **ENDS}
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: BertModel(BertConfig(**TEXT)),
        "roberta": lambda: RobertaModel(RobertaConfig(**options)),
        "xlm-roberta": lambda: XLMRobertaModel(XLMRobertaConfig(**options)),
        "mpnet": lambda: MPNetModel(MPNetConfig(**options)),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(
                dim=32,
                n_layers=2,
                n_heads=4,
                hidden_dim=64,
                vocab_size=len(VOCABULARY),
                max_position_embeddings=20,
                pad_token_id=0,
            )
        ),
    }
    return makers[kind]()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words between a start and an end token."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", VOCABULARY["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`image_model(kind)` -> (folder, the library's model saved there)."""
    made: dict[str, Saved] = {}

    def make(kind: str) -> Saved:
        if kind not in made:
            model: Any = randomize(make_image_model(kind))
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder)
            made[kind] = folder, model
        return made[kind]

    return make


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`text_model(kind)` -> (folder with weights and tokenizer, the library's model saved there)."""
    made: dict[str, Saved] = {}

    def make(kind: str) -> Saved:
        if kind not in made:
            model: Any = randomize(make_text_model(kind), seed=1)
            folder = tmp_path_factory.mktemp(f"{kind}-text")
            model.save_pretrained(folder)
            make_tokenizer().save_pretrained(folder)
            made[kind] = folder, model
        return made[kind]

    return make
