"""Tiny random models in the format of transformers, saved to disk."""

import json
import threading
from collections.abc import Callable, Iterator
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast, ViTMAEConfig, ViTMAEForPreTraining

WORDS = ["a", "photo", "of", "the", "cat", "sofa", "dog", "red", "tree", "in", "scene", "there", "is", "close", "small"]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS, ".", "-"])}
BODY: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION: dict[str, Any] = {**BODY, "image_size": 32, "patch_size": 8}
TEXT: dict[str, Any] = {**BODY, "vocab_size": len(VOCABULARY), "max_position_embeddings": 20, "pad_token_id": 0}
ENDS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3}

Saved = tuple[Path, Any]


def randomize(model: nn.Module, seed: int) -> Any:
    """Draw weights large enough that every token depends on its patch, its position and its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model.eval()


def make_image_model(kind: str) -> Any:
    """Return a tiny random model of transformers of a `model_type`."""
    if kind == "vit_mae":
        decoder: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        return ViTMAEForPreTraining(ViTMAEConfig(**VISION, **{f"decoder_{key}": decoder[key] for key in decoder}))
    clip = {"vision_config": VISION, "text_config": {**TEXT, **ENDS}, "projection_dim": 24}
    options: dict[str, dict[str, Any]] = {
        "clip": clip,
        "metaclip_2": clip,
        "siglip": {"vision_config": VISION, "text_config": {**TEXT, "projection_size": 32}},
        "dinov2_with_registers": {**VISION, "num_register_tokens": 3},
        "dinov3_vit": {**VISION, "num_register_tokens": 3},
    }
    return AutoModel.from_config(AutoConfig.for_model(kind, **options.get(kind, VISION)))


def make_text_model(kind: str) -> Any:
    """Return a tiny random text model of transformers of a `model_type`."""
    if kind in ("clip", "metaclip_2", "siglip"):
        return make_image_model(kind)
    options = TEXT if kind == "bert" else {**TEXT, **ENDS}
    if kind == "distilbert":
        options = TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return AutoModel.from_config(AutoConfig.for_model(kind, **options))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words between a start and an end token."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", VOCABULARY["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def implements() -> Callable[[object, type], bool]:
    """Return whether an object has the members of a protocol; from Python 3.12 on isinstance does not see buffers."""

    def check(encoder: object, protocol: type) -> bool:
        names = {*protocol.__annotations__, *(name for name in vars(protocol) if name[0] != "_")}
        return callable(encoder) and all(hasattr(encoder, name) for name in names)

    return check


@pytest.fixture(scope="session", name="make_tokenizer")
def make_tokenizer_fixture() -> Callable[[], PreTrainedTokenizerFast]:
    """Return a function that creates the tokenizer of the text models."""
    return make_tokenizer


def save_once(factory: pytest.TempPathFactory, make: Callable[[str], Any], seed: int, *others: Any) -> Any:
    """Return a function that maps a kind to its model, created once and saved with `others` to a new folder."""

    @cache
    def saved(kind: str) -> Saved:
        model, folder = randomize(make(kind), seed), factory.mktemp(kind)
        for part in (model, *others):
            part.save_pretrained(folder)
        return folder, model

    return saved


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Return a function: kind -> (folder, model of transformers saved there)."""
    return save_once(tmp_path_factory, make_image_model, 0)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """Return a function: kind -> (folder with weights and tokenizer, model of transformers saved there)."""
    return save_once(tmp_path_factory, make_text_model, 1, make_tokenizer())


def blocks(layers: Any) -> dict[str, Tensor]:
    """Return the transformer blocks of a tower under OpenAI's keys."""
    state: dict[str, Tensor] = {}
    for index, layer in enumerate(layers):
        attention = layer.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        weights = {
            "attn.in_proj_weight": torch.cat([projection.weight for projection in projections]),
            "attn.in_proj_bias": torch.cat([projection.bias for projection in projections]),
        }
        parts = {"attn.out_proj": attention.out_proj, "ln_1": layer.layer_norm1, "ln_2": layer.layer_norm2}
        parts |= {"mlp.c_fc": layer.mlp.fc1, "mlp.c_proj": layer.mlp.fc2}
        for key, part in parts.items():
            weights |= {f"{key}.weight": part.weight, f"{key}.bias": part.bias}
        state |= {f"transformer.resblocks.{index}.{key}": value for key, value in weights.items()}
    return state


def openai_visual(model: Any) -> dict[str, Tensor]:
    vision = model.vision_model
    return {
        "class_embedding": vision.embeddings.class_embedding,
        "positional_embedding": vision.embeddings.position_embedding.weight,
        "conv1.weight": vision.embeddings.patch_embedding.weight,
        "ln_pre.weight": vision.pre_layrnorm.weight,
        "ln_pre.bias": vision.pre_layrnorm.bias,
        "ln_post.weight": vision.post_layernorm.weight,
        "ln_post.bias": vision.post_layernorm.bias,
        "proj": model.visual_projection.weight.T,
        **blocks(vision.encoder.layers),
    }


def openai_text(model: Any) -> dict[str, Tensor]:
    text = model.text_model
    return {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
        "ln_final.weight": text.final_layer_norm.weight,
        "ln_final.bias": text.final_layer_norm.bias,
        "text_projection": model.text_projection.weight.T,
        "logit_scale": torch.tensor(4.6),
        **blocks(text.encoder.layers),
    }


@pytest.fixture(scope="session")
def openai() -> SimpleNamespace:
    """Return functions `visual(model)` and `text(model)` for the towers of a CLIP under OpenAI's keys."""
    return SimpleNamespace(visual=openai_visual, text=openai_text)


class Hub:
    """A server for the Hugging Face hub requests of a download, backed by folders.

    Attributes:
        revisions: (repository, revision) -> folder.
        gated: repositories whose licence must be accepted; the status they answer with.
        discussions: repository -> its pull requests as (number, author, title, status).
        requests: paths requested so far.
    """

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], Path] = {}
        self.gated: dict[str, int] = {}
        self.discussions: dict[str, list[tuple[int, str, str, str]]] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.requests.append(self.path)
                code, content, headers = hub.answer(self.path)
                self.send_response(code)
                headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repository: str, folder: Path, revision: str = "main") -> None:
        """Serve a folder as a revision of a repository."""
        self.revisions[repository, revision] = folder

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers for a request."""
        path = path.split("?")[0].removeprefix("/api/models").strip("/")
        owner, name, *rest = [unquote(part) for part in path.split("/")]
        repository, verb = f"{owner}/{name}", rest[0] if rest else ""
        revision = rest[1] if len(rest) > 1 else "main"
        if repository in self.gated:
            return self.gated[repository], b"{}", {"X-Error-Code": "GatedRepo"}
        if (repository, "main") not in self.revisions:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
        if verb == "discussions":
            return 200, json.dumps(self.list_discussions(repository)).encode(), {}
        commits = {
            name: sha256(name.encode()).hexdigest()[:40] for owner, name in self.revisions if owner == repository
        }
        revision = next((name for name, commit in commits.items() if revision in (name, commit)), "")
        if not revision:
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        folder, commit = self.revisions[repository, revision], commits[revision]
        if verb == "resolve":
            file = folder / "/".join(rest[2:])
            if not file.is_file():
                return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
            content = file.read_bytes()
            return 200, content, {"ETag": f'"{sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        if verb == "tree":
            entries = [{"type": "file", "path": path, "size": size, "oid": path} for path, size in sizes.items()]
            return 200, json.dumps(entries).encode(), {}
        siblings = [{"rfilename": path, "size": size} for path, size in sizes.items()]
        info = {"id": repository, "modelId": repository, "sha": commit, "private": False, "siblings": siblings}
        return 200, json.dumps({**info, "tags": [], "downloads": 0, "likes": 0}).encode(), {}

    def list_discussions(self, repository: str) -> dict[str, Any]:
        entries = [
            {
                "num": number,
                "author": {"name": author},
                "title": title,
                "status": status,
                "isPullRequest": True,
                "createdAt": "2023-02-01T00:00:00.000Z",
                "repo": {"name": repository, "type": "model"},
            }
            for number, author, title, status in self.discussions.get(repository, [])
        ]
        return {"discussions": entries, "count": len(entries), "start": 0}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Start an empty hub on 127.0.0.1 and use an empty download cache."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
