"""Run the curl and Python lines of docs/serving.md against a real server."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fusioner.formats import FORMATS

from .conftest import Running

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "serving.md").read_text("utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "samples").symlink_to(REPO / "samples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_curl_lines(server: Running, here: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    lines = "".join(block for block in blocks("bash") if "curl" in block)
    assert lines.count("curl") > 10
    script = lines.replace("http://127.0.0.1:8000", server.address).replace("curl ", "curl -sS --fail-with-body ")
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
    assert (here / "cat.png").read_bytes().startswith(b"\x89PNG")


def test_the_python_lines(server: Running, here: Path) -> None:
    (code,) = blocks("python")
    exec(code.replace("http://127.0.0.1:8000", server.address), {})


def test_every_format_and_status_is_documented() -> None:
    assert all(f"`{kind}`" in TEXT for kind in [*FORMATS, "logits"])
    from fusioner.serve.errors import STATUSES

    documented = set(re.findall(r"^\| (\d{3}) \|", TEXT, re.MULTILINE))
    assert {str(status) for status in STATUSES} - {"405", "500"} <= documented
