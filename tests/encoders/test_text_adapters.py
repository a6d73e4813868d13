"""Compare every text adapter with the forward pass of its library, on tiny random models read from disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusioner.encoders.base import TextEncoder
from fusioner.encoders.registry import build_text_encoder
from fusioner.encoders.text import TEXT_BACKBONES

KINDS = ["clip", "metaclip_2", "siglip", "bert", "roberta", "xlm-roberta", "mpnet", "distilbert"]
TEXTS = ["cat", "a photo of the red sofa .", "tree", "there is a dog in the scene .", "zebra"]
IDS = {"cat": [2, 8, 3], "tree": [2, 12, 3], TEXTS[1]: [2, 4, 5, 6, 7, 11, 9, 19, 3], "zebra": [2, 1, 3]}

Make = Callable[[str], tuple[Path, Any]]


@torch.no_grad()
def library_vector(kind: str, model: Any, ids: list[int]) -> Tensor:
    """Return the vector of one text without padding (SigLIP: padded to its 20 tokens), (d,)."""
    if kind == "siglip":
        padded = torch.tensor([ids + [0] * (20 - len(ids))])
        return model.text_model(padded).pooler_output[0]
    tokens = torch.tensor([ids])
    if kind in ("clip", "metaclip_2"):
        states = model.text_model(tokens).last_hidden_state[0, -1]  # of the end-of-text token
        return model.text_projection(states)
    return model(tokens).last_hidden_state[0].mean(0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def encoder(kind: str, text_model: Make) -> TextEncoder:
    return build_text_encoder(f"hf:{text_model(kind)[0]}")


def test_every_supported_type_is_tested() -> None:
    assert {kind.removesuffix("_text_model") for kind in TEXT_BACKBONES} == set(KINDS)


def test_vectors_are_the_librarys(kind: str, encoder: TextEncoder, text_model: Make) -> None:
    vectors = encoder(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dim)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))
    for text, ids in IDS.items():  # padding to longer texts has no effect
        expected = F.normalize(library_vector(kind, text_model(kind)[1], ids), dim=0)
        torch.testing.assert_close(vectors[TEXTS.index(text)], expected, rtol=1e-4, atol=1e-5)


def test_order_and_batches_do_not_matter(encoder: TextEncoder) -> None:
    words = ["cat", "sofa", "dog", "red", "tree"]
    many = [words[index % 5] + " photo" * (index % 3) for index in range(150)]  # three batches
    vectors = encoder(many)
    assert vectors.shape[0] == 150
    for index in (0, 63, 64, 100, 149):
        torch.testing.assert_close(vectors[index], encoder([many[index]])[0], rtol=1e-4, atol=1e-5)


def test_no_text_at_all(encoder: TextEncoder) -> None:
    assert encoder([]).shape == (0, encoder.dim)


def test_a_text_beyond_the_context_is_cut(encoder: TextEncoder) -> None:
    long = " ".join(["cat"] * 100)
    vectors = encoder([long, long + " dog"])
    torch.testing.assert_close(vectors[0], vectors[1])
    assert torch.isfinite(vectors).all()


def test_the_fingerprint_survives_a_call(kind: str, encoder: TextEncoder, text_model: Make) -> None:
    called = build_text_encoder(f"hf:{text_model(kind)[0]}")
    called(["cat", "a photo of the dog"])  # sets padding and truncation inside the tokenizer
    assert called.fingerprint() == encoder.fingerprint()


def test_fingerprints_differ_between_models(text_model: Make) -> None:
    fingerprints = {build_text_encoder(f"hf:{text_model(kind)[0]}").fingerprint() for kind in KINDS}
    assert len(fingerprints) == len(KINDS)


def test_a_tokenizer_that_differs_changes_the_fingerprint(text_model: Make, tmp_path: Path) -> None:
    folder, _ = text_model("bert")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    content = (tmp_path / "tokenizer.json").read_text()
    assert '"sofa"' in content
    (tmp_path / "tokenizer.json").write_text(content.replace('"sofa"', '"couch"'))
    assert build_text_encoder(f"hf:{tmp_path}").fingerprint() != build_text_encoder(f"hf:{folder}").fingerprint()


def test_sentence_transformers_cls_pooling_is_honoured(text_model: Make, tmp_path: Path) -> None:
    folder, model = text_model("bert")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    encoder = build_text_encoder(f"hf:{tmp_path}")
    with torch.no_grad():
        expected = F.normalize(model(torch.tensor([IDS["cat"]])).last_hidden_state[0, 0], dim=0)
    torch.testing.assert_close(encoder(["cat"])[0], expected, rtol=1e-4, atol=1e-5)
    assert encoder.fingerprint() != build_text_encoder(f"hf:{folder}").fingerprint()


def test_siglip_reads_lower_case(text_model: Make) -> None:
    encoder = build_text_encoder(f"hf:{text_model('siglip')[0]}")
    torch.testing.assert_close(encoder(["Cat"]), encoder(["cat"]))


def test_sentence_transformers_own_length_is_honoured(text_model: Make, tmp_path: Path) -> None:
    folder, _ = text_model("bert")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    encoder = build_text_encoder(f"hf:{tmp_path}")
    torch.testing.assert_close(encoder(["cat dog tree sofa"]), encoder(["cat dog tree"]))  # 3 words, start and end
    assert not torch.allclose(encoder(["cat dog tree"]), encoder(["cat dog"]))
