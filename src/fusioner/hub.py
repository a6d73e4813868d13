"""Trained models as folders and as repositories of the Hugging Face hub.

A folder holds `model.safetensors` (the file of `fusioner train` with its card), `config.json` (the card, which also
lets the hub count downloads) and `README.md` (the model card). Encoders are referenced by name, not included.
"""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fusioner.errors import FusionerError, missing_package
from fusioner.io import MARK, atomic_write, check_replaceable, writable_folder
from fusioner.model.checkpoint import WEIGHTS, save_model

try:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ModuleNotFoundError as error:
    raise missing_package(error) from error

if TYPE_CHECKING:
    from fusioner.model.checkpoint import ModelCard
    from fusioner.segmenter import Segmenter

CONFIG, README = "config.json", "README.md"
METRICS = {"val_miou": "mIoU on held-out training images", "train_miou": "mIoU on training images, running"}
"""Scores in a card's `training` and their names."""


def save_pretrained(segmenter: "Segmenter", folder: str | Path, name: str = "") -> Path:
    """Write model, configuration and model card into `folder`; return it. `name`: of the repository, for the card.

    Raises:
        FusionerError: the folder cannot be written to, or the encoders are those of an official checkpoint.
    """
    if "official" in segmenter.card.training:
        raise FusionerError(
            "the encoders of an official checkpoint have no names to load them by: share the .pth file instead"
        )
    folder = writable_folder(folder)
    save_model(folder / WEIGHTS, segmenter.model, segmenter.card)
    texts = {
        CONFIG: segmenter.card.to_json() + "\n",
        README: model_card(segmenter.card, name or folder.absolute().name),
    }
    for file, text in texts.items():
        check_replaceable(folder / file, b'"image_encoder"' if file == CONFIG else MARK)
        with atomic_write(folder / file) as beside:
            beside.write_text(text, "utf-8")
    return folder


def find_pretrained(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Return a folder of `save_pretrained`, or the model file of a repository, which is downloaded once.

    Raises:
        FusionerError: there is no such folder or repository, the latter has no model, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FusionerError(f"there is no folder {source}, and a repository is named OWNER/NAME")
    try:
        return Path(hf_hub_download(str(source), WEIGHTS, revision=revision, token=token))
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError, too
        raise FusionerError(f"cannot download {source}: this machine is offline, and it is not in its cache") from error
    except EntryNotFoundError as error:
        raise FusionerError(f"the repository {source} holds no {WEIGHTS}: it is not a Fusioner model") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"no revision {revision} of {source}" if revision else f"no repository {source} that you may read"
        raise FusionerError(f"the Hugging Face hub has {what}") from error
    except Exception as error:  # proxies, time-outs and full disks raise many classes
        raise FusionerError(f"cannot download {source} from the Hugging Face hub: {_line(error)}") from error


def push_to_hub(
    segmenter: "Segmenter",
    repository: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a Fusioner model",
) -> str:
    """Upload model, configuration and model card to the repository OWNER/NAME (created if missing); return its URL.

    Raises:
        FusionerError: an encoder is a local folder, or the hub cannot be reached or refuses the upload.
    """
    for encoder in (segmenter.card.image_encoder, segmenter.card.text_encoder):
        if "@" in encoder or "hf:/" in encoder:
            raise FusionerError(
                f"the model reads its encoder from this machine ({encoder}), which nobody else could load: train it "
                "with an encoder's published name"
            )
    api = HfApi(token=token)
    try:
        with TemporaryDirectory() as folder:
            save_pretrained(segmenter, folder, repository)
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except FusionerError:
        raise
    except Exception as error:  # as for downloads
        raise FusionerError(f"cannot upload to {repository} on the Hugging Face hub: {_line(error)}") from error
    return f"{api.endpoint}/{repository}"


def model_card(card: "ModelCard", name: str) -> str:
    """Return the README of a model: description, usage, training and scores."""
    training = card.training
    head = {"library_name": "fusioner", "pipeline_tag": "image-segmentation", "tags": ["open-vocabulary", "zero-shot"]}
    scores = [(text, training[key]) for key, text in METRICS.items() if isinstance(training.get(key), int | float)]
    rows = [
        ("image encoder", f"`{card.image_encoder}` (frozen, not in this repository)"),
        ("text encoder", f"`{card.text_encoder}` (frozen, not in this repository)"),
        ("resolution", f"{card.resolution} px"),
        ("prompt templates", "; ".join(f"`{template}`" for template in card.templates)),
        ("threshold", str(card.threshold)),
        ("guided filter", "on by default" if card.guided_filter else ""),
        ("data", _data(training)),
        ("steps", str(training.get("step", training.get("steps", "")))),
        ("made with", ", ".join(f"{one} {number}" for one, number in training.get("versions", {}).items())),
    ]
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---",
        f"# {name}",
        "Segment images by free-form labels: an open-vocabulary segmentation model of "
        "[Fusioner](https://arxiv.org/abs/2210.15138).",
        f"```python\nimport fusioner\n\nseg = fusioner.Segmenter.from_pretrained({json.dumps(name)})\n"
        'seg("photo.jpg", ["cat", "sofa"]).save("out")\n```',
        "| | |\n|---|---|\n" + "\n".join(f"| {what} | {_cell(text)} |" for what, text in rows if text),
    ]
    if scores:
        parts.append(
            "## Scores\n\n| | |\n|---|---|\n" + "\n".join(f"| {text} | {value:.2f} |" for text, value in scores)
        )
    if command := training.get("command"):
        parts.append(f"## How it was trained\n\n```bash\n{command}\n```")
    if classes := training.get("classes"):
        parts.append(f"## Words it was trained on\n\n{', '.join(classes)}")
    return "\n\n".join(parts) + "\n"


def _data(training: dict[str, Any]) -> str:
    extra = [f"{kind} ({root})" for kind, root in training.get("extra_datasets", [])]
    sets = [str(training.get("dataset", "")), *extra]
    fold = "" if training.get("fold") is None else f", fold {training['fold']}"
    return ", ".join(one for one in sets if one) + fold


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
