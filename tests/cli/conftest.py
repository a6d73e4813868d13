"""Run `fusioner predict` in this process, with a toy network."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from fusioner.cli.main import main
from fusioner.segmenter import Segmenter

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(data.chelsea()[:120, :160]).save(folder / "chelsea.jpg")
    Image.fromarray(data.coffee()[:100, :90]).save(folder / "coffee.png")
    return folder


@pytest.fixture
def tiny_predict(
    tiny_segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Predict:
    """Return `call(words...) -> exit code, stdout, stderr`, run in an empty folder with labels and --out preset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusioner.loading.load", lambda *_, **__: tiny_segmenter)

    def call(*words: object) -> tuple[int, str, str]:
        arguments = [str(word) for word in words]
        for name, value in (("--labels", "cat, cup"), ("--out", "out")):
            arguments += [] if name in arguments else [name, value]
        code = main(["predict", *arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call
