"""Compare OpenAI's key layout with the towers of transformers, with both directions written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fusioner.encoders.image import clip_vision_from_openai
from fusioner.encoders.open_clip import remap_openai_text, remap_openai_visual
from fusioner.encoders.registry import build_image_encoder, build_text_encoder
from fusioner.encoders.text import clip_text_from_openai
from fusioner.errors import FusionerError

Make = Callable[[str], tuple[Path, Any]]


def test_the_image_tower_gives_the_same_tokens(image_model: Make, openai: Any) -> None:
    folder, model = image_model("clip")
    images = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    expected = build_image_encoder(f"hf:{folder}")(images)
    for prefix in ("", "visual."):
        state = {prefix + key: value for key, value in openai.visual(model).items()}
        torch.testing.assert_close(clip_vision_from_openai(state, heads=4)(images), expected)


def test_half_precision_weights_are_taken_as_fp32(image_model: Make, openai: Any) -> None:
    state = {key: value.half() for key, value in openai.visual(image_model("clip")[1]).items()}
    assert {value.dtype for value in remap_openai_visual(state).values()} == {torch.float32}


def test_the_text_tower_gives_the_same_vectors(text_model: Make, openai: Any) -> None:
    folder, model = text_model("clip")
    # In OpenAI's vocabulary the end-of-text token is the last: move its embedding there.
    state = openai.text(model)
    state["token_embedding.weight"] = torch.cat([state["token_embedding.weight"], state["token_embedding.weight"][3:4]])
    last = len(state["token_embedding.weight"]) - 1

    class Tokenizer:
        model_max_length = 20
        pad_token, pad_token_id = "<pad>", 0

        def __call__(self, texts: list[str], **options: Any) -> Any:
            tokens = build_text_encoder(f"hf:{folder}")._tokenizer(texts, **options)  # type: ignore[attr-defined]
            tokens["input_ids"][tokens["input_ids"] == 3] = last
            return tokens

    encoder = clip_text_from_openai({**state, "visual.proj": torch.zeros(1)}, Tokenizer(), heads=4)
    texts = ["cat", "a photo of the red sofa"]
    torch.testing.assert_close(encoder(texts), build_text_encoder(f"hf:{folder}")(texts))


def test_published_head_counts_are_assumed() -> None:
    width = 128
    shapes: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (5, width),
        "conv1.weight": (width, 3, 4, 4),
        "proj": (width, 16),
    }
    block = "transformer.resblocks.0."
    for norm in ("ln_pre", "ln_post", f"{block}ln_1", f"{block}ln_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    linears = {"attn.in_proj_": (3, 1), "attn.out_proj.": (1, 1), "mlp.c_fc.": (4, 1), "mlp.c_proj.": (1, 4)}
    for part, (out, into) in linears.items():
        shapes |= {f"{block}{part}weight": (out * width, into * width), f"{block}{part}bias": (out * width,)}
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    encoder = clip_vision_from_openai(state)
    assert encoder.model.config.num_attention_heads == 2
    assert (encoder.dim, encoder.stride, encoder.model.config.image_size) == (16, 4, 8)
    assert F.cosine_similarity(encoder(torch.rand(1, 3, 8, 8)), torch.zeros(1, 16, 2, 2)).abs().max() == 0


def test_wrong_states_get_one_sentence(image_model: Make, openai: Any) -> None:
    state = openai.visual(image_model("clip")[1])
    with pytest.raises(FusionerError, match=r"'layer1\.0\.conv1\.weight' is not a key of a CLIP vision transformer"):
        remap_openai_visual({**state, "visual.layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(FusionerError, match=r"resblocks\.0\.attn\.odd' is not a key of a CLIP vision transformer"):
        remap_openai_visual({"transformer.resblocks.0.attn.odd": torch.zeros(1)})
    with pytest.raises(FusionerError, match="is not a key of a CLIP text transformer"):
        remap_openai_text({"conv1.weight": torch.zeros(1)})
    with pytest.raises(FusionerError, match="the CLIP weights lack 'proj'"):
        clip_vision_from_openai({key: value for key, value in state.items() if key != "proj"}, heads=4)
    with pytest.raises(FusionerError, match=r"1 tensors are missing, first .*layers\.1\.layer_norm2\.bias"):
        clip_vision_from_openai({k: v for k, v in state.items() if k != "transformer.resblocks.1.ln_2.bias"}, heads=4)
    with pytest.raises(FusionerError, match=r"lack 'transformer\.resblocks\.0"):
        clip_vision_from_openai({key: value for key, value in state.items() if "resblocks" not in key}, heads=4)
