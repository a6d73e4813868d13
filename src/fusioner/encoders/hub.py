"""Locate, download and read pretrained models; report every failure in one sentence."""

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, CLIPTextConfig, CLIPVisionConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from fusioner.encoders.base import RGB
from fusioner.errors import FusionerError

logger = logging.getLogger(__name__)

SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
OPEN_CLIP = ("open_clip_model.safetensors",)
OPEN_CLIP_PICKLE = ("open_clip_pytorch_model.bin",)
PICKLE = ("pytorch_model.bin", "pytorch_model.bin.index.json", *OPEN_CLIP_PICKLE)
WEIGHTS = (*SAFETENSORS, *OPEN_CLIP, *PICKLE)
"""Names of weight files, in the order in which they are preferred."""

_VOCABULARIES = {"tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model"}
_VOCABULARIES |= {"sentencepiece.bpe.model"}
CONFIGS = ("config.json", "open_clip_config.json")
_SETTINGS = ["*.json", "*.txt", "*.model"]
_SHARDS = {SAFETENSORS: "model-*.safetensors", PICKLE[:2]: "pytorch_model-*.bin"}
_CONVERTER = ("SFconvertbot", "Adding `safetensors` variant of this model")  # author and title of its pull requests
_OPTIONAL = ("mask_token", "position_ids")  # unused by the tokens, so checkpoints may lack them
# Configuration entries that change a model's output.
_SIZES = {"num_attention_heads", "num_hidden_layers", "image_size", "patch_size", "max_position_embeddings"}
_FINGERPRINTED = _SIZES | {"model_type", "hidden_act", "layer_norm_eps", "rope_theta", "num_register_tokens"}
_FINGERPRINTED |= {"eos_token_id", "pad_token_id"}


@dataclass(frozen=True)
class Checkpoint:
    """Files of a pretrained model.

    Attributes:
        name: name of the encoder, for error messages.
        folder: contains the configuration and the tokenizer.
        weights: the weight file, or the index of its shards.
        open_clip: whether the files are open_clip's, also where there are others beside them.
    """

    name: str
    folder: Path
    weights: Path
    open_clip: bool = False

    def read(self) -> dict[str, Tensor]:
        """Return all tensors of the weight file and its shards."""
        logger.info("%s: reading %s", self.name, self.weights)
        return {key: tensor for file in _shards(self.weights) for key, tensor in read_tensors(file).items()}


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


def locate(
    source: str, name: str, fallback: str = "", *, tokenizer: bool = False, open_clip: bool = False
) -> Checkpoint:
    """Find a model in a local folder or the download cache, or download it.

    Args:
        source: folder or Hugging Face repository.
        name: name of the encoder, for error messages.
        fallback: repository with `open_clip_model.safetensors`, read if `source` holds no safetensors.
        tokenizer: complete a cached download that has no tokenizer, as of another program's image encoder.
        open_clip: read open_clip's files only.
    """
    folder = Path(source).expanduser()
    names = (*OPEN_CLIP, *OPEN_CLIP_PICKLE) if open_clip else WEIGHTS
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    if folder.is_dir():
        weights = _find([folder.absolute()], names)
        if weights is None:
            raise FusionerError(f"{name}: {folder} has no weights ({listed})")
        return Checkpoint(name, folder.absolute(), weights, open_clip)
    if folder.is_file():
        raise FusionerError(f"{name}: {source} is a file; give the folder with config.json and model.safetensors")
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise FusionerError(f"{name}: there is no folder {source}")
    try:
        checkpoint = _find_cached(source, name, fallback, open_clip)
        if checkpoint is None or (tokenizer and not has_tokenizer(checkpoint.folder)):
            _download(source, name, fallback, open_clip)
            checkpoint = _find_cached(source, name, fallback, open_clip)
    except FusionerError:
        raise
    except Exception as error:  # proxies, time-outs, full disks, malformed ids: many classes
        target = "hf:/FOLDER" if name.startswith("hf:") else f"{name}@/FOLDER"
        hint = f"to work offline, copy the repository's files to a folder and name it {target}"
        raise FusionerError(f"{name}: {_download_problem(error, source)}; {hint}") from error
    if checkpoint is None:
        config = CONFIGS[1] if open_clip else CONFIGS[0]
        raise FusionerError(f"{name}: the repository {source} has no {config} or none of {listed}")
    return checkpoint


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a vocabulary; without one transformers may build a tokenizer of unknown words."""
    return any((folder / file).is_file() for file in _VOCABULARIES)


def _find(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    """Return the first complete weight file, by folder and then by name."""
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if file.is_file() and all(map(Path.is_file, _shards(file)))), None)


def _shards(weights: Path) -> list[Path]:
    if weights.suffix != ".json":
        return [weights]
    try:
        index = json.loads(weights.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise FusionerError(f"{weights} is not an index of weight files") from error
    return sorted({weights.parent / file for file in index.values()})


def _find_cached(repository: str, name: str, fallback: str, open_clip: bool) -> Checkpoint | None:
    snapshots = _snapshots(repository)
    configs = CONFIGS[1:] if open_clip else CONFIGS
    folder = next((path for path in snapshots if any((path / file).is_file() for file in configs)), None)
    weights = _find(snapshots, OPEN_CLIP if open_clip else (*SAFETENSORS, *OPEN_CLIP))
    weights = weights or (_find(_snapshots(fallback), OPEN_CLIP) if fallback else None)
    weights = weights or _find(snapshots, OPEN_CLIP_PICKLE if open_clip else PICKLE)
    return Checkpoint(name, folder, weights, open_clip) if folder and weights else None


def is_cached(repository: str, fallback: str = "", open_clip: bool = False) -> bool:
    """Return whether a repository's files, or the fallback's weights, are in the download cache."""
    return _find_cached(repository, repository, fallback, open_clip) is not None


def _snapshots(repository: str) -> list[Path]:
    """Return the downloaded revisions of a repository, main first."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    main = folder / "refs" / "main"
    commit = main.read_text() if main.is_file() else ""
    return sorted((folder / "snapshots").glob("*"), key=lambda path: path.name != commit)


class _Download(NamedTuple):
    """The weight files to download: a repository's revision, patterns of names, and a note to the user."""

    repository: str
    patterns: list[str]
    revision: str | None = None
    note: str = ""


def _choose_weights(repository: str, fallback: str, open_clip: bool) -> _Download | None:
    """Return the preferred weight files: safetensors, their conversion, open_clip's, a pickle; None: there are none."""
    files = set(HfApi().list_repo_files(repository))
    for names in (OPEN_CLIP,) if open_clip else (SAFETENSORS, OPEN_CLIP):
        if files & {*names}:
            return _Download(repository, _patterns(names))
    if not open_clip and (revision := _conversion(repository)):
        note = f"downloading the safetensors of {revision} in {repository}"
        return _Download(repository, _patterns(SAFETENSORS), revision, note)
    if fallback:
        try:
            if {*OPEN_CLIP} & set(HfApi().list_repo_files(fallback)):
                return _Download(fallback, _patterns(OPEN_CLIP), note=f"downloading {OPEN_CLIP[0]} of {fallback}")
        except HfHubHTTPError:
            logger.info("%s cannot be read", fallback)
    for names in (OPEN_CLIP_PICKLE,) if open_clip else (PICKLE[:2], OPEN_CLIP_PICKLE):
        if found := sorted(files & {*names}):
            note = f"downloading {found[0]} of {repository}; only its tensors are read"
            return _Download(repository, _patterns(names), note=note)
    return None


def _patterns(names: tuple[str, ...]) -> list[str]:
    return [*names, *([_SHARDS[names]] if names in _SHARDS else [])]


def _download(repository: str, name: str, fallback: str, open_clip: bool) -> None:
    """Download settings and the preferred weight files."""
    chosen = _choose_weights(repository, fallback, open_clip)
    snapshot_download(repository, allow_patterns=_SETTINGS)
    if chosen is None:
        return
    if chosen.note:
        logger.warning("%s: %s", name, chosen.note)
    snapshot_download(chosen.repository, revision=chosen.revision, allow_patterns=chosen.patterns)


def download_megabytes(repository: str, fallback: str = "", open_clip: bool = False) -> int | None:
    """Return the size of the weights that `locate` would download; None if the hub does not give it."""
    try:
        chosen = _choose_weights(repository, fallback, open_clip)
        if chosen is None:
            return None
        entries = HfApi().list_repo_tree(chosen.repository, revision=chosen.revision)
        files = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    except Exception:  # offline, gated, not found: the download itself reports it
        return None
    return round(sum(files[path] for path in filter_repo_objects(files, allow_patterns=chosen.patterns)) / 1e6)


def _conversion(repository: str) -> str | None:
    """Return the revision of the open pull request that converts a repository's pickle to safetensors."""
    author, title = _CONVERTER
    try:
        requests = list(HfApi().get_repo_discussions(repository, author=author, discussion_type="pull_request"))
    except HfHubHTTPError:  # the repository has no discussions
        return None
    found = [request for request in requests if request.author == author and request.title == title]
    return next((request.git_reference for request in found if request.status == "open"), None)


def _download_problem(error: Exception, repository: str) -> str:
    page = f"https://huggingface.co/{repository}"
    if isinstance(error, GatedRepoError):
        return f"{repository} requires accepting its licence: do so at {page} and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hugging Face hub has no repository {repository} that you may read"
    reason = first_line(error).split(". ")[0].removeprefix("Got: ")
    return f"cannot download {repository} ({reason}), which is not in the cache {constants.HF_HUB_CACHE}"


def read_tensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file, or the content of a pickle, which may hold only tensors and values."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # SafetensorError, OSError, RuntimeError, UnpicklingError, EOFError
        if "nsupported" in str(error):
            raise FusionerError(f"{file} cannot be read: it holds code besides tensors, which is never run") from error
        raise FusionerError(f"the weights in {file} cannot be read ({first_line(error)})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in an optional JSON file; empty if the file is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, its class name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
