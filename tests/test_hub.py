"""Models as folders and repositories, with a local folder and an HTTP server with the routes of the hub."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fusioner.errors import FusionerError
from fusioner.hub import find_pretrained, push_to_hub, save_pretrained
from fusioner.model.checkpoint import load_model, save_model
from fusioner.segmenter import Segmenter
from fusioner.torch_network import TorchNetwork

COMMIT = "c0ffee" + "0" * 34
SCRIPT = """
import sys
import torch
from fusioner.errors import FusionerError
from fusioner.loading import load
from fusioner.segmenter import Segmenter

seg = load(device="cpu")
print(seg.push_to_hub("someone/cats", token="hf_secret"))
again = Segmenter.from_pretrained("someone/cats", device="cpu", token="hf_secret")
same = all(torch.equal(p, q) for p, q in zip(seg.model.parameters(), again.model.parameters()))
print(same, again.card.to_json() == seg.card.to_json())
for name in ("someone/dogs", "someone/empty", "no repository"):
    try:
        Segmenter.from_pretrained(name, device="cpu")
    except FusionerError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """A request handler with the routes for uploading and downloading a model; repositories are held in memory."""

    repositories: dict[str, dict[str, bytes]]
    keys: set[str]

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write no log."""

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        self.keys.add(self.headers.get("Authorization", ""))
        name = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(filter(None, (request.get("organization"), request["name"])))
            self.repositories.setdefault(name, {})
            self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    file = entry["value"]
                    self.repositories[name][file["path"]] = base64.b64decode(file["content"])
            self._answer({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        else:  # accept the front matter of a card
            self._answer({"errors": [], "warnings": []})

    def do_HEAD(self) -> None:
        self._file(with_content=False)

    def do_GET(self) -> None:
        self._file(with_content=True)

    def _file(self, with_content: bool) -> None:
        _, owner, name, *_, file = self.path.split("/")
        repository = self.repositories.get(f"{owner}/{name}")
        content = (repository or {}).get(file)
        if content is None:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            self._answer({"error": code}, 404, {"X-Error-Code": code})
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT}, with_content)

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_content: bool = True) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_content and self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Start a server; return its address and its state."""
    handler = type("OneHub", (Hub,), {"repositories": {"someone/empty": {}}, "keys": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_uploaded_and_downloaded(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    address, server = hub
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where, same, missing, empty, malformed = done.stdout.splitlines()
    assert where == f"{address}/someone/cats"
    assert same == "True True"
    assert "has no repository someone/dogs" in missing
    assert "someone/empty holds no model.safetensors" in empty
    assert "a repository is named OWNER/NAME" in malformed
    files = server.repositories["someone/cats"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert len(files["model.safetensors"]) < 10e6, "frozen encoders were uploaded"
    card = files["README.md"].decode()
    assert 'from_pretrained("someone/cats")' in card
    assert "fusioner train pascal --root" in card
    assert "mIoU on held-out training images" in card
    assert "Bearer hf_secret" in server.keys


def test_a_folder_contains_the_model(tiny_segmenter: Segmenter, tmp_path: Path) -> None:
    tiny_segmenter.card.training = {"command": "fusioner train folder --root toys", "val_miou": 12.5, "steps": 3}
    tiny_segmenter.card.training |= {"dataset": "folder", "extra_datasets": [["coco", "coco|2014"]], "fold": 1}
    folder = tiny_segmenter.save_pretrained(tmp_path / "cats")
    assert find_pretrained(folder) == folder
    model, card = load_model(folder)
    assert card == tiny_segmenter.card
    assert all((p == q).all() for p, q in zip(model.parameters(), tiny_segmenter.model.parameters(), strict=True))
    parts = tiny_segmenter.model, tiny_segmenter.image_encoder, tiny_segmenter.text_encoder
    other = Segmenter(TorchNetwork(*parts, card, templates=["a drawing of a {}."])).save_pretrained(tmp_path / "dogs")
    assert load_model(other)[1].templates == ("a drawing of a {}.",)
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith("---\n")
    assert "| data | folder, coco (coco\\|2014), fold 1 |" in text
    assert "| mIoU on held-out training images | 12.50 |" in text
    assert json.loads((folder / "config.json").read_text())["config"] == card.config.to_dict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: load_model(find_pretrained(folder)), r"holds no model\.safetensors, and no fusioner\.json"),
        (lambda folder: find_pretrained(folder / "none"), "there is no folder"),
    ],
)
def test_a_missing_model_is_an_error(call: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(FusionerError, match=message):
        call(tmp_path)


def test_a_run_is_not_taken_for_a_model(tiny_segmenter: Segmenter, tmp_path: Path) -> None:
    for name in ("best", "last"):
        save_model(tmp_path / f"{name}.safetensors", tiny_segmenter.model, tiny_segmenter.card)
    with pytest.raises(FusionerError, match=r"give one of its files \(best\.safetensors, last\.safetensors\)"):
        load_model(tmp_path)


def test_encoders_of_this_machine_are_not_published(tiny_segmenter: Segmenter, tmp_path: Path) -> None:
    tiny_segmenter.card.image_encoder = "clip-vit-b16@/models/clip"
    with pytest.raises(FusionerError, match="nobody else could load"):
        push_to_hub(tiny_segmenter, "someone/cats")
    (tmp_path / "file").write_text("")
    with pytest.raises(FusionerError, match="cannot write"):
        save_pretrained(tiny_segmenter, tmp_path / "file")
