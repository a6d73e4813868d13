"""Run the cells of examples/quickstart.ipynb in order, as a kernel does."""

import ast
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fusioner.cli.main import main
from fusioner.segmentation import Segmentation

REPO = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # raised by pycocotools


def run_cell(code: str, scope: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last expression; `!fusioner` lines run in this process."""
    if code.startswith("!fusioner "):
        assert main(shlex.split(code)[1:]) == 0
        return None
    *body, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], None
    exec(compile(ast.Module(body, []), "cell", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), scope) if last else None


@pytest.mark.slow
def test_the_notebook_runs_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((REPO / "examples" / "quickstart.ipynb").read_text("utf-8"))
    assert notebook["nbformat"] == 4
    (tmp_path / "samples").symlink_to(REPO / "samples")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    monkeypatch.setenv("FUSIONER_CACHE", str(tmp_path / "cache"))
    scope: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), scope) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    results = [value for value in shown if isinstance(value, Segmentation)]
    assert len(results) == 3
    for result in results:
        with Image.open(io.BytesIO(result._repr_png_())) as picture:
            assert picture.width > 300
    assert results[0].coverage["cat"] > 0.4
    assert (tmp_path / "examples" / "report" / "report.md").is_file()
