"""Build transformers models from the files of pretrained models, in transformers' or open_clip's layout."""

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, CLIPTextConfig, CLIPVisionConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from fusioner.encoders.base import RGB
from fusioner.encoders.hub import CONFIGS, Checkpoint, first_line, read_json
from fusioner.errors import FusionerError

_OPTIONAL = ("mask_token", "position_ids")  # unused by the tokens, so checkpoints may lack them
# Configuration entries that change a model's output.
_SIZES = {"num_attention_heads", "num_hidden_layers", "image_size", "patch_size", "max_position_embeddings"}
_FINGERPRINTED = _SIZES | {"model_type", "hidden_act", "layer_norm_eps", "rope_theta", "num_register_tokens"}
_FINGERPRINTED |= {"eos_token_id", "pad_token_id"}


@contextmanager
def loading(failure: str) -> Iterator[None]:
    """Silence transformers' load reports and progress bars; turn any exception into "`failure` (its first line)"."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # strict dataclass validation and the tokenizers library raise classes of their own
        raise FusionerError(f"{failure} ({first_line(error)})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(checkpoint: Checkpoint, model_types: Collection[str]) -> PretrainedConfig:
    """Return the configuration of a model, or of one tower of open_clip's CLIP, if its type is in `model_types`."""
    folder, name = checkpoint.folder, checkpoint.name
    if not any((folder / file).is_file() for file in CONFIGS[checkpoint.open_clip :]):
        missing = CONFIGS[checkpoint.open_clip]
        raise FusionerError(f"{name}: {folder} has no {missing}; give a folder written by save_pretrained or open_clip")
    config: PretrainedConfig | None = None
    if checkpoint.open_clip or "model_type" not in read_json(folder / "config.json"):
        tower = "vision" if "clip_vision_model" in model_types else "text"
        model = read_json(folder / "open_clip_config.json").get("model_cfg")
        config = _open_clip_config(model, tower, f"{name}: {folder / 'open_clip_config.json'}") if model else None
    settings = read_json(folder / "config.json")
    if config is None and "auto_map" in settings and settings.get("model_type") not in CONFIG_MAPPING:
        raise FusionerError(f"{name}: {folder} describes its model by code of its own, which is never run")
    with loading(f"{name}: {folder / 'config.json'} is not a configuration of transformers"):
        config = config or AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if config.model_type not in model_types:
        known = ", ".join(model_types)
        raise FusionerError(f"{name}: {folder} holds a model of type {config.model_type!r}, not one of {known}")
    return config


def tower_config(config: PretrainedConfig, tower: str) -> Any:
    """Return the `vision_config` or `text_config` of a two-tower model; of another model, its own configuration."""
    part = getattr(config, tower, config)
    if part is not config and hasattr(config, "projection_dim"):
        part.projection_dim = config.projection_dim  # CLIP's own entry is often left at the default
    return part


# Defaults of open_clip, and what does not change a trained network. Other settings describe another network than CLIP.
_OPEN_CLIP_VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4, "patch_size": 16, "image_size": 224}
_OPEN_CLIP_TEXT = {"layers": 12, "width": 512, "heads": 8, "mlp_ratio": 4, "context_length": 77, "vocab_size": 49408}
_IGNORED = {"patch_dropout", "pad_id", "eos_id", "hf_tokenizer_name"}


def _open_clip_config(model: Mapping[str, Any], tower: str, where: str) -> CLIPVisionConfig | CLIPTextConfig:
    """Translate the "vision" or "text" tower of open_clip's `model_cfg`."""
    given = model.get(f"{tower}_cfg", {})
    known = _OPEN_CLIP_VISION if tower == "vision" else _OPEN_CLIP_TEXT
    read, other = known | given, [key for key in given if given[key] and key not in {*known, *_IGNORED}]
    if other or not isinstance(read["layers"], int) or "embed_dim" not in model:
        reason = f"it has {other[0]}" if other else "it is a ResNet" if "embed_dim" in model else "it has no embed_dim"
        raise FusionerError(f"{where}: the {tower} encoder is no transformer of CLIP: {reason}")
    return clip_config(tower, model["embed_dim"], bool(model.get("quick_gelu")), read)


def clip_config(tower: str, dim: int, quick_gelu: bool, sizes: Mapping[str, Any]) -> Any:
    """Return transformers' configuration of CLIP's "vision" or "text" tower, from sizes by open_clip's names."""
    shared = {
        "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        "hidden_size": sizes["width"],
        "intermediate_size": round(sizes["width"] * sizes["mlp_ratio"]),
        "num_hidden_layers": sizes["layers"],
        "projection_dim": dim,
    }
    if tower == "vision":
        heads = sizes["width"] // sizes["head_width"]
        image = {"image_size": sizes["image_size"], "patch_size": sizes["patch_size"]}
        return CLIPVisionConfig(**shared, num_attention_heads=heads, **image)
    vocabulary = sizes["vocab_size"]
    return CLIPTextConfig(
        **shared,
        num_attention_heads=sizes["heads"],
        max_position_embeddings=sizes["context_length"],
        vocab_size=vocabulary,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,  # the last token ends a text
    )


def read_normalisation(checkpoint: Checkpoint) -> tuple[RGB, RGB] | None:
    """Return (mean, std) of a model's preprocessing settings, None if they do not state them."""
    settings = {} if checkpoint.open_clip else read_json(checkpoint.folder / "preprocessor_config.json")
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    open_clip = read_json(checkpoint.folder / "open_clip_config.json").get("preprocess_cfg", {})
    values = [settings.get("image_mean", open_clip.get("mean")), settings.get("image_std", open_clip.get("std"))]
    try:
        return _rgb(values[0]), _rgb(values[1])
    except (TypeError, ValueError):
        return None


def _rgb(values: Any) -> RGB:
    red, green, blue = map(float, values)
    return red, green, blue


def rename_keys(state: Mapping[str, Tensor], rules: Mapping[str, str], model: str) -> dict[str, Tensor]:
    """Rename tensors, in fp32, by rules from a regular expression for a whole key to its replacement.

    `{qkv}` in a replacement splits a fused matrix into the query, key and value projections. A key that matches no rule
    is an error: it is not one of a `model`.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        matches = ((re.fullmatch(pattern, key), template) for pattern, template in rules.items())
        new = next((match.expand(template) for match, template in matches if match), None)
        if new is None:
            raise FusionerError(f"{key!r} is not a key of a {model}")
        parts = zip("qkv", value.chunk(3), strict=True) if "{qkv}" in new else [("", value)]
        renamed |= {new.replace("{qkv}", letter): part.detach().float() for letter, part in parts}
    return renamed


def build_model(
    kind: type[PreTrainedModel],
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    name: str,
    *,
    exact: bool = False,
) -> Any:
    """Build a transformers model without pooler, in fp32 and eval mode, with every weight taken from `state`.

    `from_pretrained` maps published keys to those of the installed version. It fills missing tensors with random
    numbers and only logs that, hence the check. `exact` also refuses tensors that the model lacks.
    """
    options: dict[str, Any] = {"add_pooling_layer": False} if accepts(kind.__init__, "add_pooling_layer") else {}
    with loading(f"{name}: {kind.__name__} cannot be built"):
        loaded: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(state),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, report = loaded
    problems = {
        "missing": [key for key in report["missing_keys"] if exact or not key.endswith(_OPTIONAL)],
        "of another shape": [entry[0] for entry in report["mismatched_keys"]],
        "unknown": report["unexpected_keys"] if exact else [],
    }
    if counts := [f"{len(keys)} tensors are {problem}" for problem, keys in problems.items() if keys]:
        first = min(key for keys in problems.values() for key in keys)
        raise FusionerError(f"{name}: the weights do not fit {kind.__name__}: {', '.join(counts)}, first {first}")
    return model


def accepts(function: Callable[..., Any], parameter: str) -> bool:
    """Return whether a function names a parameter."""
    return parameter in signature(function).parameters


def fingerprinted_settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return the configuration entries that change a model's output."""
    return {key: value for key, value in config.to_dict().items() if key in _FINGERPRINTED}
