"""Test that the commands and Python lines of docs/export.md run, and that core dependencies exclude torch."""

import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner.cli.main import main
from fusioner.loading import load

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "export.md").read_text("utf-8")


def test_the_commands_run(
    exported: Path, trained: Path, page_commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skip the first command, which the fixture `exported` has run."""
    (tmp_path / "samples").symlink_to(REPO / "samples")
    (tmp_path / "exported").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    assert page_commands[1:]
    for command in page_commands[1:]:
        assert main(command) == 0
    expected = load(trained, "cpu")("samples/chelsea.jpg", ["cat", "sofa"]).label_map
    assert (np.asarray(Image.open("masks/chelsea.png")) != expected).mean() < 0.01
    assert Path("masks/chelsea.overlay.png").is_file()


def test_the_python_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["again"].card == scope["seg"].card


def test_the_core_dependencies_need_no_torch() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    needed = " ".join(project["dependencies"])
    assert not any(word in needed for word in ("torch", "transformers", "lightning", "huggingface"))
    assert any(entry.startswith("torch>") for entry in project["optional-dependencies"]["train"])
