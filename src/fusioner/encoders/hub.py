"""Locate, download and read the files of pretrained models; report every failure in one sentence."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from torch import Tensor

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
    """Return the preferred weight files (safetensors, their conversion, open_clip's, a pickle), None without any."""
    files = set(_file_sizes(repository))
    for names in (OPEN_CLIP,) if open_clip else (SAFETENSORS, OPEN_CLIP):
        if files & {*names}:
            return _Download(repository, _patterns(names))
    if not open_clip and (revision := _conversion(repository)):
        note = f"downloading the safetensors of {revision} in {repository}"
        return _Download(repository, _patterns(SAFETENSORS), revision, note)
    if fallback:
        try:
            if {*OPEN_CLIP} & set(_file_sizes(fallback)):
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
        files = _file_sizes(chosen.repository, chosen.revision)
    except Exception:  # offline, gated, not found: the download itself reports it
        return None
    return round(sum(files[path] or 0 for path in filter_repo_objects(files, allow_patterns=chosen.patterns)) / 1e6)


def _file_sizes(repository: str, revision: str | None = None) -> dict[str, int | None]:
    """Return the names and sizes of a repository's files, without the 23 s of retries of `list_repo_files`."""
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=timeout)
    return {file.rfilename: file.size for file in info.siblings or ()}


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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, its class name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
