"""Install the wheel into an empty environment of every Python and run command line, server and client."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

FIRST_ANSWER = """
import re, subprocess, sys
from urllib.request import urlopen
import fusioner

with subprocess.Popen([sys.argv[1], "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
    try:
        address = re.search(r"http://\\S+", server.stdout.readline())[0]
        assert b"<html" in urlopen(address).read()
        with fusioner.Client(address) as client:
            print(client.segment(sys.argv[2], ["cat", "sofa"]).coverage["cat"])
    finally:
        server.terminate()
"""


def find_python(version: str) -> str | None:
    """Return a working interpreter of a version: on the path, or one of pyenv's or uv's."""
    places = Path.home() / ".pyenv" / "versions", Path.home() / ".local" / "share" / "uv" / "python"
    installed = [str(path) for place in places for path in sorted(place.glob(f"*{version}*/bin/python{version}"))]
    candidates = (shutil.which(f"python{version}"), *installed)
    return next(
        (path for path in candidates if path and not subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL)), None
    )


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([*map(str, words)], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    if "FUSIONER_TEST_WHEEL" not in os.environ:
        pytest.skip("installs from the package index: make test-wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "built", REPO, cwd=folder)
    (built,) = (folder / "built").iterdir()
    return built


@pytest.mark.slow
def test_is_one_small_wheel_for_all(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size < 100e6  # the limit of the package index


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_segments_in_an_empty_environment(version: str, wheel: Path, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    run(python, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    bin, photo = tmp_path / "venv" / "bin", REPO / "samples" / "chelsea.jpg"
    run(bin / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", f"{wheel}[serve]", cwd=tmp_path)
    assert "torch" not in run(bin / "python", "-m", "pip", "list", cwd=tmp_path)
    output = run(bin / "fusioner", "predict", photo, "--labels", "cat, sofa", "--mode", "whole", cwd=tmp_path)
    assert "cat" in output
    assert {path.name for path in (tmp_path / "fusioner-out").iterdir()} == {
        *("chelsea.json", "chelsea.overlay.png", "chelsea.png")
    }
    coverage = float(run(bin / "python", "-c", FIRST_ANSWER, bin / "fusioner", photo, cwd=tmp_path))
    assert 0.5 < coverage < 0.95
