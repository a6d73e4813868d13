"""Compare the bundled DINOv2 and MiniLM with transformers, and check that similar inputs have similar vectors."""

import hashlib
import json
import socket
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage import data
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertModel, Dinov2Model

from fusioner.encoders import bundled
from fusioner.encoders.base import Frozen, ImageEncoder, TextEncoder
from fusioner.encoders.bundled import Dinov2, MiniLM
from fusioner.encoders.registry import build_image_encoder
from fusioner.errors import FusionerError

WEIGHTS = Path(str(resources.files("fusioner.weights")))


@pytest.fixture(scope="module")
def dinov2() -> Dinov2:
    return Dinov2()


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    return bundled.minilm_embedded()


def photo(name: str, height: int, width: int) -> Tensor:
    """Return a sample photograph of scikit-image, (1, 3, height, width) in [0, 1]."""
    rgb = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
    return F.interpolate(rgb, size=(height, width), mode="bilinear", antialias=True)


def save_as_folder(folder: Path, weights: str, config: dict[str, object]) -> Path:
    """Save a folder that transformers can load."""
    (folder / "model.safetensors").write_bytes((WEIGHTS / weights).read_bytes())
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_files_are_the_pinned_ones_and_small_enough():
    lines = [line.split("  ") for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines()]
    pinned = {name: sha256 for sha256, name in lines}
    assert {name: hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() for name in pinned} == pinned
    sizes = [path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()]
    assert max(sizes) < 95e6
    assert sum(sizes) < 120e6
    for name in pinned:
        if name.endswith(".safetensors"):
            for tensor in load_file(WEIGHTS / name).values():
                assert tensor.dtype == (torch.float16 if tensor.dim() > 1 else torch.float32)
                assert tensor.isfinite().all()


def test_dinov2_is_transformers_dinov2_strictly_loaded(dinov2: Dinov2, tmp_path: Path):
    config = {
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 10,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "use_mask_token": False,
    }
    folder = save_as_folder(tmp_path, "dinov2_s.safetensors", config)
    loaded: Any = Dinov2Model.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    model, report = loaded
    assert not any(report.values())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for name, height, width in [("astronaut", 84, 126), ("chelsea", 336, 336), ("coffee", 518, 518)]:
        image = photo(name, height, width)
        with torch.no_grad():
            hidden = model.eval()((image - mean[:, None, None]) / std[:, None, None]).last_hidden_state
        expected = F.normalize(hidden[:, 1:], dim=2)
        tokens = dinov2(image)
        assert tokens.shape == (1, 384, height // 14, width // 14)
        torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected, rtol=0, atol=1e-5)


def test_dinov2_final_norm_has_no_weights_of_its_own(dinov2: Dinov2):
    assert torch.equal(dinov2.model.layernorm.weight, torch.ones(384))
    assert torch.equal(dinov2.model.layernorm.bias, torch.zeros(384))


def test_dinov2_positions_are_a_smooth_grid_in_row_order(dinov2: Dinov2):
    """Neighbours must be similar and distant positions not, because a transposed grid would run as well."""
    position = dinov2.model.embeddings.position_embeddings
    assert position.shape == (1, 1 + 37 * 37, 384)
    grid = F.normalize(position[0, 1:].unflatten(0, (37, 37)) - position[0, 1:].mean(dim=0), dim=-1)
    right, below = (grid[:, 1:] * grid[:, :-1]).sum(-1), (grid[1:] * grid[:-1]).sum(-1)
    diagonal = (grid[:18, :18] * grid[19:, 19:]).sum(-1)
    assert min(right.mean(), below.mean()) > 0.8
    assert diagonal.mean() < 0.2


@pytest.mark.parametrize(("height", "width", "grid"), [(224, 224, (16, 16)), (100, 211, (7, 15)), (14, 40, (1, 2))])
def test_dinov2_takes_any_size_and_gives_unit_tokens(dinov2, height: int, width: int, grid: tuple[int, int]):
    tokens = dinov2(photo("coffee", height, width).repeat(2, 1, 1, 1))
    assert tokens.shape == (2, 384, *grid)
    torch.testing.assert_close(tokens.norm(dim=1), torch.ones(2, *grid))
    torch.testing.assert_close(tokens[0], tokens[1], rtol=1e-4, atol=1e-5)


def test_dinov2_tokens_separate_cat_and_cup(dinov2: Dinov2):
    side_by_side = torch.cat([photo("chelsea", 224, 224), photo("coffee", 224, 224)], dim=3)
    tokens = dinov2(side_by_side)[0]  # (384, 16, 32)
    left, right = tokens[:, 4:12, 4:12].flatten(1), tokens[:, 4:12, 20:28].flatten(1)
    within = ((left.T @ left).mean() + (right.T @ right).mean()) / 2
    assert within > (left.T @ right).mean() + 0.15


def test_minilm_is_transformers_bert_mean_pooled(minilm: MiniLM, tmp_path: Path):
    config = {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    folder = save_as_folder(tmp_path, "minilm.safetensors", config)
    options = {"output_loading_info": True, "dtype": torch.float32, "add_pooling_layer": False}
    loaded: Any = BertModel.from_pretrained(folder, **options)
    model, report = loaded
    assert not any(report.values())
    tokenizer = Tokenizer.from_file(str(WEIGHTS / "minilm.tokenizer.json"))
    tokenizer.no_padding()
    texts = ["sofa", "a photo of a large fluffy cat, sleeping in the sun.", "Ümlaut CAFÉ"]
    with torch.no_grad():
        expected = torch.cat(
            [model.eval()(torch.tensor([tokenizer.encode(text).ids]))[0].mean(dim=1) for text in texts]
        )
    torch.testing.assert_close(minilm(texts), F.normalize(expected, dim=1), rtol=0, atol=1e-5)


def test_minilm_similarity_follows_meaning(minilm: MiniLM):
    words = ["cat", "kitten", "car", "automobile", "sofa", "couch"]
    similarity = minilm(words) @ minilm(words).T
    torch.testing.assert_close(similarity.diagonal(), torch.ones(6))
    cat, kitten, car, automobile, sofa, couch = range(6)
    for synonym, word, other in [(kitten, cat, car), (automobile, car, cat), (couch, sofa, car)]:
        assert similarity[word, synonym] > similarity[word, other] + 0.2


def test_minilm_takes_none_and_many_and_too_long(minilm: MiniLM):
    assert minilm([]).shape == (0, 384)
    many = minilm([f"label number {index}" for index in range(130)])
    torch.testing.assert_close(many[129:], minilm(["label number 129"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(minilm(["dog " * 254]), minilm(["dog " * 900]))
    assert not torch.allclose(minilm(["dog " * 120 + "a red car " * 20]), minilm(["dog " * 130]), atol=1e-2)


@pytest.mark.parametrize(("build", "protocol"), [(Dinov2, ImageEncoder), (bundled.minilm_embedded, TextEncoder)])
def test_they_load_without_network_and_stay_frozen(
    build: Callable, protocol: Any, implements: Any, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an embedded encoder opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = build()
    assert isinstance(encoder, Frozen)
    assert implements(encoder, protocol)
    assert not encoder.train().training
    assert not any(module.training or any(p.requires_grad for p in module.parameters()) for module in encoder.modules())
    assert all(parameter.dtype == torch.float32 for parameter in encoder.parameters())


def test_fingerprints_follow_weights_and_normalisation(dinov2: Dinov2, minilm: MiniLM):
    """The fingerprints equal those under transformers 5, which keeps feature caches and cards valid."""
    again = Dinov2()
    assert again.fingerprint().startswith("5eed36335d22532e")
    assert minilm.fingerprint().startswith("c99b2f323301cb88")
    assert build_image_encoder("dinov2-s-embedded+effnet-lite2").fingerprint().startswith("4ef37933d8312c58")
    assert again.fingerprint() == dinov2.fingerprint() != minilm.fingerprint()
    again.mean = (0.5, 0.5, 0.5)
    assert again.fingerprint() != dinov2.fingerprint()


def test_missing_and_broken_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FusionerError, match=r"none\.safetensors is missing: reinstall"):
        bundled.read_weights("none.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((WEIGHTS / "dinov2_s.safetensors").read_bytes()[:100_000])
    monkeypatch.setattr(bundled, "weights_file", lambda name: cut)
    with pytest.raises(FusionerError, match=r"cannot be read .*: reinstall fusioner"):
        Dinov2()


@pytest.mark.parametrize(
    ("change", "reason"), [("lacks", "Missing key"), ("more", "Unexpected key"), ("shape", "size mismatch")]
)
def test_weights_that_do_not_fit_are_refused(change: str, reason: str):
    state = bundled.read_weights("minilm.safetensors")
    key = "encoder.layer.3.output.dense.weight"
    if change == "lacks":
        del state[key]
    elif change == "more":
        state["encoder.layer.9.output.dense.weight"] = state[key]
    else:
        state[key] = state[key].T.contiguous()
    with pytest.raises(FusionerError, match=rf"the weights do not fit MiniLM: {reason}.*encoder\.layer\.\d\.output"):
        MiniLM(state, (WEIGHTS / "minilm.tokenizer.json").read_text())
