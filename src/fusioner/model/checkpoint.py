"""A trained model in one safetensors file, its card inside as metadata."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fusioner.errors import FusionerError
from fusioner.io import atomic_write
from fusioner.model.fusioner import Fusioner
from fusioner.model.metadata import ModelCard

FORMAT = "fusioner-1"


def save_model(path: str | Path, model: nn.Module, card: ModelCard, dtype: torch.dtype | None = None) -> None:
    """Write weights and card to `path` (.safetensors), atomically; `dtype` converts the weights (fp16 to ship)."""
    state: Mapping[str, Tensor] = model.state_dict()
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_tensors(path, state, {"format": FORMAT, "card": card.to_json()})


def save_tensors(path: str | Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; FusionerError where the system refuses."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path) as beside:
        # Not save_file, which makes files that only their owner may read.
        beside.write_bytes(save(plain, metadata=metadata))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> tuple[Fusioner, ModelCard]:
    """Read a file of `save_model` -> (the network in eval mode and float32, its card).

    Raises FusionerError for a missing, truncated or foreign file and for weights that do not fit the card.
    """
    path = Path(path)
    if not path.is_file():
        raise FusionerError(f"no model file {path}: give the .safetensors file that `fusioner train` wrote")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FusionerError(f"{path} is damaged or no safetensors file ({error}): copy or train it again") from error
    if metadata.get("format") != FORMAT:
        raise FusionerError(f"{path} is a safetensors file but no Fusioner model (no '{FORMAT}' card in its metadata)")
    card = ModelCard.from_json(metadata["card"])
    model = Fusioner(card.config)
    load_state(model, state, str(path))
    return model.to(device).eval(), card


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `model`; raises FusionerError naming the first key that is missing, unknown or misshapen."""
    own = model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise FusionerError(f"{source} lacks the weight '{name}' of shape {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, the model needs {tuple(tensor.shape)}"
            raise FusionerError(f"{source}: weight '{name}' has shape {shapes}; was it made for other encoders?")
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise FusionerError(f"{source} holds the weight '{unknown[0]}' that this model does not have")
    model.load_state_dict(dict(state))
