"""Test that the commands and Python lines of docs/batch.md run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPO / "docs" / "batch.md").read_text("utf-8")
    (commands, _), (lines,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("bash", "python"))
    (tmp_path / "samples").symlink_to(REPO / "samples")
    script = f'set -e\nfusioner() {{ "{sys.executable}" -m fusioner "$@"; }}\n{commands}'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 images are in results; 3 of them done now")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(lines, scope)
    assert getattr(scope["pixels"], "mean", lambda: 0)() > 0.4  # the cat fills most of the picture
