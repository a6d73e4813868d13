"""Test that label embeddings average over templates and encode every label once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fusioner.encoders.base import TextEncoder
from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES, LabelEmbedder, read_templates
from fusioner.encoders.registry import build_text_encoder
from fusioner.errors import FusionerError

LABELS = ["cat", "sofa", "dog", "red tree", "a small {} cat"]


class Counting:
    """An encoder that records the texts it encodes."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder, self.name, self.dim, self.texts = encoder, encoder.name, encoder.dim, list[str]()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.texts += texts
        return self.encoder(texts)

    def fingerprint(self) -> str:
        return self.encoder.fingerprint()


@pytest.fixture(scope="module")
def encoder(text_model: Callable[[str], tuple[Path, Any]]) -> TextEncoder:
    return build_text_encoder(f"hf:{text_model('bert')[0]}")


def test_a_row_is_the_mean_of_unit_vectors_made_unit(encoder: TextEncoder) -> None:
    vectors = LabelEmbedder(encoder)(["cat", "sofa"])
    for row, label in enumerate(["cat", "sofa"]):
        prompts = [template.format(label) for template in DEFAULT_TEMPLATES]
        expected = F.normalize(torch.stack([encoder([prompt])[0] for prompt in prompts]).mean(0), dim=0)
        torch.testing.assert_close(vectors[row], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_each_label_is_encoded_once(encoder: TextEncoder) -> None:
    counting = Counting(encoder)
    embed = LabelEmbedder(counting, ["a {}", "the {}"])
    first = embed(["cat", "sofa", "cat"])
    assert counting.texts == ["a cat", "the cat", "a sofa", "the sofa"]
    assert torch.equal(embed(["sofa", "cat"]), first[[1, 0]])
    assert len(counting.texts) == 4
    embed(["dog", "cat"])
    assert counting.texts[4:] == ["a dog", "the dog"]


def test_templates_matter(encoder: TextEncoder) -> None:
    assert not torch.allclose(
        LabelEmbedder(encoder, ["a {}"])(["cat"]), LabelEmbedder(encoder, ["the red {}"])(["cat"])
    )


def test_no_labels(encoder: TextEncoder) -> None:
    assert LabelEmbedder(encoder)([]).shape == (0, encoder.dim)


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(LABELS))
def test_the_order_of_labels_permutes_the_rows(encoder: TextEncoder, order: list[str]) -> None:
    rows = [LABELS.index(label) for label in order]
    torch.testing.assert_close(
        LabelEmbedder(encoder)(order), LabelEmbedder(encoder)(LABELS)[rows], rtol=1e-4, atol=1e-5
    )


def test_templates_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("a drawing of a {}.\n\n  ein Bild: {} \n", encoding="utf-8")
    assert read_templates(file) == ("a drawing of a {}.", "ein Bild: {}")
    file.write_text("a drawing of a {}.\nno place\n")
    with pytest.raises(FusionerError, match=r"templates\.txt: the template 'no place' has no \{\}"):
        read_templates(file)
    file.write_text("\n")
    with pytest.raises(FusionerError, match="is empty"):
        read_templates(file)
    file.write_bytes(b"caf\xe9 {}")
    with pytest.raises(FusionerError, match="not UTF-8"):
        read_templates(file)
    with pytest.raises(FusionerError, match="No such file"):
        read_templates(tmp_path / "none.txt")


def test_templates_given_in_python_are_checked_too(encoder: TextEncoder) -> None:
    for wrong in ([], ["a photo of a cat"]):
        with pytest.raises(FusionerError):
            LabelEmbedder(encoder, wrong)
