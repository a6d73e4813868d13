"""Test that the blocks of docs/integrations.md run as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusioner.cli.main import main
from fusioner.serve.label_studio import LabelStudio, read_label_config

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "integrations.md").read_text("utf-8")


def block(language: str, words: str) -> str:
    """Return the only block of a language that contains the words."""
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if words in text]
    return found


def run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "samples").symlink_to(REPO / "samples")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(code, scope)
    return scope


def test_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(block("python", "to_transformers"), tmp_path, monkeypatch)["result"]
    assert result.to_transformers()[0]["label"] == "cat"


def test_supervision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("supervision", reason="no package supervision")
    scope = run(block("python", "to_supervision"), tmp_path, monkeypatch)
    assert (scope["picture"] != scope["result"].image).any()


@pytest.mark.slow
def test_ultralytics(tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(REPO / "samples")
    script = f'fusioner() {{ "{sys.executable}" -m fusioner "$@"; }}\n{block("bash", "--format yolo")}'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    description = yaml.safe_load((tmp_path / "distilled" / "data.yaml").read_text("utf-8"))
    assert description["names"] == {0: "cat", 1: "cup", 2: "person"}
    assert len(list((tmp_path / "distilled").glob("labels/*/*.txt"))) == 3


def test_fiftyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fo: Any = pytest.importorskip("fiftyone", reason="no package fiftyone", exc_type=ImportError)
    try:
        fo.list_datasets()
    except fo.core.config.FiftyOneConfigError:
        pytest.skip("FiftyOne's database is not installed")
    dataset = run(block("python", "apply_model"), tmp_path, monkeypatch)["dataset"]
    assert all(isinstance(sample["fusioner"], fo.Segmentation) for sample in dataset)
    dataset.delete()


def test_label_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusioner.serve import server

    export, command = block("bash", "--label-studio").splitlines()
    monkeypatch.setenv(*export.removeprefix("export ").split("=", 1))
    options: dict[str, Any] = {}

    class Recorded(server.Server):
        def __init__(self, *_: Any, **given: Any) -> None:
            self.url = ""
            options.update(given)

        def run_until_signal(self) -> None:
            pass

    monkeypatch.setattr(server, "Server", Recorded)
    assert main(shlex.split(command)[1:]) == 0
    assert (options["label_studio"], options["port"]) == (LabelStudio("http://localhost:8080", "TOKEN"), 8000)
    (control,) = read_label_config(block("xml", "BrushLabels"))
    assert (control.key, list(control.labels)) == ("image", ["cat", "sofa"])


def test_cvat() -> None:
    common: Any = pytest.importorskip("cvat_cli._internal.common", reason="no package cvat-cli")
    words = shlex.split(block("bash", "cvat-cli"))
    name, value = words[words.index("-p") + 1].split("=", 1)
    module = words[words.index("--function-module") + 1]
    loader = common.FunctionLoader(module, None, {name: value.removeprefix("str:")})
    assert [label.name for label in loader.load().spec.labels] == ["cat", "sofa"]
