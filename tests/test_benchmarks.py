"""The benchmark scripts start, and those that reach into the package run on small inputs."""

import runpy
import sys
from pathlib import Path

import pytest
from skimage import data
from skimage.io import imsave

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = [path.name for path in sorted(BENCHMARKS.glob("*.py")) if "ArgumentParser" in path.read_text()]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Return a function that runs a script and returns its exit code and what it prints."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def typed(script: str, *words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *map(str, words)])
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        return code, capfd.readouterr().out

    return typed


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed(run, script: str) -> None:
    code, out = run(script, "--help")
    assert code == 0
    assert out.startswith("usage: ")


@pytest.mark.slow
def test_memory_in_mode_slide(run) -> None:
    code, out = run("native_memory.py", "--in-process", "--megapixels", 0.3, "--labels", 1)
    assert code == 0
    assert "| 670 x 447 | 1 | 6 |" in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_batches_lose_nothing(run, tmp_path: Path) -> None:
    for number in range(4):
        imsave(tmp_path / f"{number}.jpg", data.chelsea()[number:, :100])
    code, out = run("batch_kill9.py", tmp_path, "--kills", 1, "--workers", 1, "--shard-size", 1)
    assert code == 0, out
    assert "every image has one row; exactly the invalid files have an error" in out
