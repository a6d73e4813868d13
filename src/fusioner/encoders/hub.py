"""From a hub id or a local folder to a checked transformers model: quiet, safetensors, every failure one sentence."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fusioner.encoders.base import RGB
from fusioner.errors import FusionerError

ALLOW_PICKLE = "FUSIONER_ALLOW_PICKLE"
"""Environment variable: "1" is the user's word that a repository's `pytorch_model.bin` may be read, weights only."""

_SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PATTERNS = ["*.json", "*.txt", "*.model", "model*.safetensors"]
# Never used by the tokens, so a checkpoint may lack them.
_OPTIONAL = ("mask_token", "position_ids")
# What, beside the weights, decides the output of a transformers model.
_SETTINGS = (
    "model_type",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
    "image_size",
    "patch_size",
    "rope_theta",
    "num_register_tokens",
    "max_position_embeddings",
    "eos_token_id",
    "pad_token_id",
)


def allow_pickle() -> bool:
    """Whether the user said that a pickled checkpoint may be read (always with `weights_only=True`)."""
    return os.environ.get(ALLOW_PICKLE) == "1"


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' load reports and progress bars, and give both back as they were."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def locate(source: str, name: str) -> Path:
    """The local folder of a model: `source` itself when it is one, else the hub repository `source`, downloaded once.

    Raises FusionerError when the folder is missing, the repository is unknown or gated, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.is_file():
        raise FusionerError(f"{name}: {source} is a file; give the folder with config.json and model.safetensors")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise FusionerError(f"{name}: there is no folder {source}")
    patterns = [*_PATTERNS, "pytorch_model*"] if allow_pickle() else _PATTERNS
    try:
        cached = Path(snapshot_download(source, allow_patterns=patterns, local_files_only=True))
        if has_weights(cached):
            return cached
    except (LocalEntryNotFoundError, ValueError):
        pass  # not downloaded yet
    return _download(source, name, patterns)


def _download(repository: str, name: str, patterns: list[str]) -> Path:
    offline = f"to work offline, copy the repository's files to a folder and name it {name.removeprefix('hf:')}@/FOLDER"
    if name.startswith("hf:"):
        offline = "to work offline, copy the repository's files to a folder and name it hf:/FOLDER"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except GatedRepoError as error:
        raise FusionerError(
            f"{name}: the repository {repository} asks for its licence to be accepted: do so at "
            f"https://huggingface.co/{repository} and log in with `hf auth login`; {offline}"
        ) from error
    except RepositoryNotFoundError as error:
        raise FusionerError(
            f"{name}: the Hugging Face hub has no repository {repository} that you may read; {offline}"
        ) from error
    except Exception as error:  # proxies, time-outs, full disks, malformed ids: many classes, one meaning
        reason = _line(error).split(". ")[0].removeprefix("Got: ")
        raise FusionerError(f"{name}: cannot download {repository} ({reason}); {offline}") from error


def has_weights(folder: Path) -> bool:
    """Whether `folder` holds a config and weights that may be read."""
    weights = (*_SAFE, *_PICKLE) if allow_pickle() else _SAFE
    return (folder / "config.json").is_file() and any((folder / file).is_file() for file in weights)


def read_config(folder: Path, name: str) -> PretrainedConfig:
    """The model's configuration; FusionerError names the missing or broken file."""
    path = folder / "config.json"
    if not path.is_file():
        raise FusionerError(f"{name}: {folder} has no config.json; give a folder written by save_pretrained")
    try:
        with quietly():
            return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # strict dataclass validation raises classes of its own
        raise FusionerError(f"{name}: {path} is not a configuration transformers can read ({_line(error)})") from error


def read_normalisation(folder: Path) -> tuple[RGB, RGB] | None:
    """(mean, std) of the folder's preprocessor_config.json, or None where it says nothing."""
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        return _rgb(settings["image_mean"]), _rgb(settings["image_std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rgb(values: list[float]) -> RGB:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def load_pretrained(
    kind: type[PreTrainedModel], folder: Path, config: PretrainedConfig, name: str, **options: Any
) -> PreTrainedModel:
    """A transformers model in fp32 with every weight read from `folder`.

    Raises FusionerError when the weights are missing, pickled, truncated, of other sizes, or do not cover the model.
    """
    safe = any((folder / file).is_file() for file in _SAFE)
    pickled = any((folder / file).is_file() for file in _PICKLE)
    if not safe and not (pickled and allow_pickle()):
        hint = f"; it has a pickled one, read (weights only) when {ALLOW_PICKLE}=1 is set" if pickled else ""
        raise FusionerError(f"{name}: {folder} has no model.safetensors{hint}")
    try:
        with quietly():
            loaded: Any = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=safe,
                weights_only=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **options,
            )
    except Exception as error:  # SafetensorError, OSError, ValueError, RuntimeError, UnpicklingError
        raise FusionerError(f"{name}: the weights in {folder} cannot be read ({_line(error)})") from error
    model, report = loaded
    _check_complete(report, folder, name)
    return model


def _check_complete(report: Mapping[str, Any], folder: Path, name: str) -> None:
    # transformers fills what is missing with random numbers and only logs it: that must never pass for a trained model.
    if wrong := sorted(entry[0] for entry in report["mismatched_keys"]):
        raise FusionerError(f"{name}: {folder}/config.json does not fit its weights: {wrong[0]} has another shape")
    if missing := sorted(key for key in report["missing_keys"] if not key.endswith(_OPTIONAL)):
        raise FusionerError(f"{name}: the weights in {folder} lack {len(missing)} tensors, first {missing[0]}")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def model_settings(config: PretrainedConfig) -> dict[str, Any]:
    """The part of a configuration that changes the output, for the fingerprint."""
    return {key: value for key, value in config.to_dict().items() if key in _SETTINGS}
