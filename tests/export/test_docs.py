"""The commands and Python lines of docs/export.md run; the core dependencies hold no torch."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusioner.export.bundle import PARTS, read_bundle
from fusioner.loading import load

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "export.md").read_text("utf-8")


@pytest.mark.slow
def test_the_commands_run(make_trained: Callable[..., Path], tmp_path: Path) -> None:
    """With a tiny model that has all four graphs, and one photograph for the check."""
    model = make_trained(image_dim=0, similarity="cosine", similarity_dim=32, affinity_refinement=True)
    (tmp_path / "samples").symlink_to(REPO / "samples")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cat.jpg").symlink_to(REPO / "samples" / "chelsea.jpg")
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    commands = commands.replace("export --out", f"export --model '{model}' --photos one --out")
    script = f'set -e\nfusioner() {{ "{sys.executable}" -m fusioner "$@"; }}\n{commands}'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_bundle(tmp_path / "exported").parts == PARTS
    found = np.asarray(Image.open(tmp_path / "masks" / "chelsea.png"))
    expected = load(model, "cpu")(REPO / "samples" / "chelsea.jpg", ["cat", "sofa"]).label_map
    assert (found != expected).mean() < 0.01
    assert (tmp_path / "masks" / "chelsea.overlay.png").is_file()


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
