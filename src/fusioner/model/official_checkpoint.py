"""The official checkpoint: `{"model": state_dict}` with `img_model.* text_model.* fusion.* decoder.*`.

Its frozen encoders are CLIP's under OpenAI's key names. Sizes are inferred from the tensors; other settings (heads,
temperature, normalisation) have the official defaults, which the caller can override.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from fusioner.encoders.base import PUBLISHED_NORMALISATION
from fusioner.encoders.image import ClipVision, clip_vision_from_openai
from fusioner.encoders.prompt_templates import DEFAULT_TEMPLATES
from fusioner.encoders.text import ClipText, clip_text_from_openai, load_tokenizer
from fusioner.errors import FusionerError
from fusioner.model.checkpoint import ModelCard, load_state
from fusioner.model.config import FusionerConfig
from fusioner.model.fusioner import Fusioner

SUFFIXES = (".pth", ".pt")
"""File name suffixes of official checkpoints."""
TOKENIZER = "openai/clip-vit-large-patch14"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_PARTS = ("img_model", "text_model", "fusion", "decoder")
_BLOCK = re.compile(r"blocks\.(\d+)\.")
_STAGE = re.compile(r"conv_(\d+)\.weight")


def load_official(
    path: str | Path,
    *,
    dataset: str = "pascal",
    heads: int | None = None,
    clip_heads: int | None = None,
) -> tuple[Fusioner, ClipVision, ClipText, ModelCard]:
    """Load an official checkpoint: network, image encoder, text encoder and card, in float32 and eval mode.

    CLIP's tokenizer, which checkpoints do not include, is tokenizer.json (or vocab.json and merges.txt) in the
    checkpoint's folder, else downloaded once from the Hugging Face hub (2 MB).

    Args:
        path: the file, of which only tensors and plain values are unpickled (`weights_only=True`).
        dataset: key of `PUBLISHED_NORMALISATION` with the mean and std it was trained with.
        heads: of the fusion; None: one per 64 channels (the official 8 of 512).
        clip_heads: of both encoders; None: likewise.

    Raises FusionerError if the file is no official checkpoint, a key is missing or misshapen, or there is no tokenizer.
    """
    path = Path(path).expanduser()
    parts = _split(_read(path), path)
    words = _tokenizer(path)
    try:
        image = clip_vision_from_openai(_only_visual(parts["img_model"]), heads=clip_heads, name="official-clip")
        text = clip_text_from_openai(parts["text_model"], words, heads=clip_heads, name="official-clip-text")
    except FusionerError as error:
        raise FusionerError(f"{path} is not a checkpoint of the official code: {error}") from error
    image.mean, image.std = PUBLISHED_NORMALISATION[dataset]
    config = _config(parts, path, (image.dim, text.dim), heads)
    model = Fusioner(config)
    trained = {f"{part}.{key}": value.float() for part in ("fusion", "decoder") for key, value in parts[part].items()}
    load_state(model, trained, str(path))
    resolution = image.model.config.image_size
    card = ModelCard(config, image.name, text.name, resolution, DEFAULT_TEMPLATES, image.mean, image.std)
    card.training = {"dataset": dataset, "official": path.name}
    return model.eval(), image, text, card


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FusionerError(f"no checkpoint {path}: give the .pth file of the official code")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # such files often carry their arguments along
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise FusionerError(f"{path} is corrupt or not an official checkpoint ({reason})") from error
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FusionerError(f"{path} has no weights under the key 'model', so it is not an official checkpoint")
    return {key.removeprefix("module."): value for key, value in state.items()}  # as DDP names them


def _split(state: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part not in parts:
            raise FusionerError(f"{path} holds the weight '{key}', which no official checkpoint has")
        parts[part][rest] = value
    for part, own in parts.items():
        if not own:
            raise FusionerError(f"{path} lacks all weights '{part}.*'")
    return parts


def _only_visual(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the vision transformer, also of a checkpoint with a whole CLIP."""
    visual = {key: value for key, value in state.items() if key.startswith("visual.")}
    return visual or state


def _config(
    parts: Mapping[str, Mapping[str, Tensor]], path: Path, dims: tuple[int, int], heads: int | None
) -> FusionerConfig:
    fusion, decoder = parts["fusion"], parts["decoder"]
    width = _need(fusion, "fusion", "proj_patch", path).shape[0]
    hidden = _need(fusion, "fusion", "blocks.0.mlp.fc1.weight", path).shape[0]
    blocks = {int(found[1]) for key in fusion if (found := _BLOCK.match(key))}
    stages = sorted(int(found[1]) for key in decoder if (found := _STAGE.fullmatch(key)))
    if len(stages) < 2:
        raise FusionerError(f"{path} lacks the weight 'decoder.conv_{len(stages)}.weight'")
    return FusionerConfig(
        image_dim=dims[0],
        text_dim=dims[1],
        width=width,
        layers=max(blocks) + 1,
        heads=heads or max(1, width // 64),
        mlp_ratio=hidden / width,
        decoder_widths=tuple(decoder[f"conv_{stage}.weight"].shape[0] for stage in stages[:-1]),
    )


def _need(state: Mapping[str, Tensor], part: str, key: str, path: Path) -> Tensor:
    if key not in state:
        raise FusionerError(f"{path} lacks the weight '{part}.{key}'")
    return state[key]


def _tokenizer(path: Path) -> Any:
    for place in (path.parent, path.with_suffix("")):
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            return load_tokenizer(place, path.name)
    patterns = [*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
    try:
        return load_tokenizer(Path(snapshot_download(TOKENIZER, allow_patterns=patterns)), path.name)
    except FusionerError:
        raise
    except Exception as error:  # no network, a proxy, a full disk: many classes, one meaning
        raise FusionerError(
            f"{path} has no tokenizer, and CLIP's is not available ({str(error).splitlines()[0][:100]}): put "
            f"tokenizer.json of huggingface.co/{TOKENIZER} beside the checkpoint"
        ) from error
