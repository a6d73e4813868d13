"""Model files: round trips, and an error message for every defect."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fusioner.errors import FusionerError
from fusioner.model.checkpoint import ModelCard, load_model, save_model
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

SHAPE = FusionerConfig(image_dim=8, text_dim=6, width=8, layers=1, heads=2, decoder_widths=(4,))
CARD = ModelCard(
    SHAPE, "a+b", "c", 112, ("{}", "a photo of a {}."), (0.1, 0.2, 0.3), None, 0.4, True, training={"steps": 3}
)


def test_weights_and_card_are_saved_and_loaded(tmp_path: Path) -> None:
    model = Fusioner(SHAPE)
    save_model(tmp_path / "m.safetensors", model, CARD)
    again, card = load_model(tmp_path / "m.safetensors")
    assert card == CARD
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_half_precision_halves_the_file_and_loads_as_float(tmp_path: Path) -> None:
    model = Fusioner(FusionerConfig(image_dim=64, text_dim=64, width=64, layers=2, heads=2, decoder_widths=(32,)))
    card = ModelCard(model.config, "a", "b")
    save_model(tmp_path / "full.safetensors", model, card)
    save_model(tmp_path / "half.safetensors", model, card, torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    again, _ = load_model(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}


def test_errors_describe_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(FusionerError, match="no model file"):
        load_model(path)
    save_model(path, Fusioner(SHAPE), CARD)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FusionerError, match="corrupt"):
            load_model(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(FusionerError, match="not a Fusioner model"):
        load_model(path)


def test_an_invalid_card_is_one_sentence() -> None:
    card = json.loads(CARD.to_json())
    other: dict[type, Any] = {bool: 3, int: "3", float: "3", str: 3, list: 3, dict: None, type(None): [1, "b"]}
    broken = ["{", "[1]", "null", json.dumps(card | {"newer": 1}), json.dumps({**card, "training": {"classes": 4}})]
    broken += [json.dumps(card | {name: other[type(value)]}) for name, value in card.items()]
    broken += [json.dumps(card | {"config": card["config"] | {name: []}}) for name in ("width", "method", "dropout")]
    for text in broken:
        with pytest.raises(FusionerError, match="card is corrupt or of another version"):
            ModelCard.from_json(text)


def test_weights_of_other_encoders_are_named(tmp_path: Path) -> None:
    wider = FusionerConfig(image_dim=9, text_dim=6, width=8, layers=1, heads=2, decoder_widths=(4,))
    save_model(tmp_path / "m", Fusioner(wider), CARD)
    with pytest.raises(FusionerError, match=r"fusion\.visual_proj\.0\.weight.*other encoders"):
        load_model(tmp_path / "m")


def test_settings_of_a_newer_version_are_named() -> None:
    with pytest.raises(FusionerError, match="unknown model settings shiny"):
        FusionerConfig.from_dict(SHAPE.to_dict() | {"shiny": 1})
