"""Trained models: one safetensors file each, with the model's card as metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fusioner.errors import FusionerError
from fusioner.io import atomic_write, cannot_read, check_replaceable
from fusioner.model.config import FusionerConfig, check_value

if TYPE_CHECKING:  # exported models read cards where torch is not installed
    import torch
    from torch import Tensor, nn

    from fusioner.model.fusioner import Fusioner

FORMAT = "fusioner-1"
WEIGHTS = "model.safetensors"
"""Name of the model file in a folder of `Segmenter.save_pretrained`."""
EXPORT_MANIFEST = "fusioner.json"
"""Name of the description in a folder of `fusioner export`."""


@dataclass
class ModelCard:
    """Configuration, encoders, preprocessing and training record of a model.

    Attributes:
        config: of the trained network.
        image_encoder, text_encoder: registry names (`A+B` for several image encoders).
        resolution: side in pixels of the square images it was trained on.
        templates: prompt templates averaged for every label.
        mean, std: normalisation of the image encoder's input; None keeps the encoder's own.
        threshold: default probability above which a pixel gets a label.
        guided_filter: whether mask edges are aligned with image edges by default.
        short_side: side in pixels to which the shorter side of an image is resized by default; 0: mode whole resizes to
            a square, mode slide keeps the resolution.
        stride: default step between the windows of mode slide, px; 0: that of `sliding_window.WindowGrid`.
        background: method "softmax": names that compete with the labels and whose pixels get none.
        min_area: method "softmax": see `labels.SoftmaxNames`.
        pamr: method "softmax": iterations of `postprocess.refine_by_pixels`.
        training: data set, fold, classes, steps, command, versions, hash of the image list, settings.
    """

    config: FusionerConfig
    image_encoder: str
    text_encoder: str
    resolution: int = 224
    templates: tuple[str, ...] = ("a photo of a {}.",)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    threshold: float = 0.5
    guided_filter: bool = False
    short_side: int = 0
    stride: int = 0
    background: tuple[str, ...] = ()
    min_area: float = 0.0
    pamr: int = 0
    training: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys, so that equal cards are equal bytes."""
        return json.dumps(asdict(self) | {"config": self.config.to_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Invert `to_json`; raises FusionerError if the card is corrupt or of a newer version."""
        try:
            values = json.loads(text)
            values["config"] = FusionerConfig.from_dict(values["config"])
            for entry in fields(cls):
                if entry.name in values:
                    values[entry.name] = check_value(entry.name, values[entry.name], entry.type)
            tuple(values.get("training", {}).get("classes", ()))
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError, FusionerError) as error:
            raise FusionerError(f"the model card is corrupt or of another version of Fusioner ({error})") from error


def save_model(path: str | Path, model: "nn.Module", card: ModelCard, dtype: "torch.dtype | None" = None) -> None:
    """Write weights and card to `path` (.safetensors), atomically; `dtype` converts the weights (fp16 to ship)."""
    state: Mapping[str, Tensor] = model.state_dict()
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_tensors(path, state, {"format": FORMAT, "card": card.to_json()})


def save_tensors(path: str | Path, state: "Mapping[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; raises FusionerError if it cannot be written."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    check_replaceable(Path(path))
    with atomic_write(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(tensors, metadata=metadata))


def find_model(path: str | Path) -> Path:
    """Return the model file that a path names: itself, or the one in a folder of `Segmenter.save_pretrained`.

    Raises:
        FusionerError: there is none.
    """
    path = Path(path).expanduser()
    if (path / WEIGHTS).is_file():
        return path / WEIGHTS
    if (path / EXPORT_MANIFEST).is_file():
        raise FusionerError(f"folder {path} holds an exported model: give the .safetensors file that was exported")
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.glob("*.safetensors")))
        hint = f": give one of its files ({files})" if files else ""
        raise FusionerError(f"folder {path} holds no {WEIGHTS}, and no {EXPORT_MANIFEST} of `fusioner export`{hint}")
    if not path.is_file():
        raise FusionerError(f"no model file {path}: give the .safetensors file that `fusioner train` wrote")
    return path


def model_digest(path: Path) -> str:
    """Return the sha256 (hex) of a model file, or of the digests of an exported folder's files.

    Raises:
        FusionerError: a file cannot be read.
    """
    if path.is_dir():
        parts = sorted(part for part in path.iterdir() if part.is_file())
        return hashlib.sha256("".join(map(model_digest, parts)).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(f"the model {path}", error) from error


def read_card(path: str | Path) -> ModelCard:
    """Read the card of a file of `save_model`, without torch.

    Raises FusionerError if the file is missing, truncated, not a Fusioner model or of a newer version.
    """
    path = find_model(path)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error
    version = metadata.get("format", "")
    if version != FORMAT and version.startswith("fusioner-"):
        raise FusionerError(f"{path} has the format '{version}' of a newer Fusioner: update this installation")
    if version != FORMAT or "card" not in metadata:
        raise FusionerError(
            f"{path} is a safetensors file but not a Fusioner model (no '{FORMAT}' card in its metadata)"
        )
    try:
        return ModelCard.from_json(metadata["card"])
    except FusionerError as error:
        raise FusionerError(f"{path}: {error}") from error


def load_model(path: str | Path) -> "tuple[Fusioner, ModelCard]":
    """Read a file of `save_model`: the network in eval mode and float32 on the CPU, and its card.

    Raises FusionerError as `read_card`, and if the weights do not fit the card.
    """
    from fusioner.model.fusioner import Fusioner

    path = find_model(path)
    card = read_card(path)
    try:
        with safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _corrupt(path, error) from error
    model = Fusioner(card.config)
    load_state(model, state, str(path))
    return model.eval(), card


def _corrupt(path: str | Path, error: Exception) -> FusionerError:
    if Path(path).suffix != ".safetensors":
        return FusionerError(f"{path} is not a .safetensors file of `fusioner train`, which is needed here")
    return FusionerError(f"{path} is corrupt or not a safetensors file ({error}): copy or train it again")


def load_state(model: "nn.Module", state: "Mapping[str, Tensor]", source: str) -> None:
    """Copy `state` into `model`; raises FusionerError naming the first missing, unknown or misshapen weight."""
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise FusionerError(f"{source} lacks the weight '{name}' of shape {tuple(tensor.shape)}")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, the model needs {tuple(tensor.shape)}"
            raise FusionerError(f"{source}: weight '{name}' has shape {shapes}; was it made for other encoders?")
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise FusionerError(f"{source} holds the weight '{unknown[0]}' that this model does not have")
    model.load_state_dict(dict(state))
