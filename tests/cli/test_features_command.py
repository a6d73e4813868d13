"""`fusioner features` with the embedded encoder on small pictures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.cli.features import app
from fusioner.errors import FusionerError
from fusioner.features.cache import entry_files
from fusioner.training.presets import SMALL

Run = Callable[..., tuple[int, str]]
OPTIONS = ("--image-encoder", "dinov2-s-embedded", "--resolution", "56", "--device", "cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place = tmp_path / "set"
    for part in ("images", "masks"):
        (place / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3)).astype(np.uint8)).save(place / "images" / f"{i}.png")
        Image.fromarray(rng.integers(0, 2, (30, 40)).astype(np.uint8)).save(place / "masks" / f"{i}.png")
    (place / "classes.txt").write_text("background\nthing\n")
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*words: object) -> tuple[int, str]:
        """Return the exit code and the output."""
        code = 0
        try:
            app([str(word) for word in words], result_action="return_value")
        except SystemExit as end:
            code = int(end.code or 0)
        return code, "".join(capsys.readouterr())

    return typed


def test_from_building_to_pruning(run: Run, root: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    code, out = run("build", "folder", "--root", root, "--out", cache, "--views", 2, *OPTIONS)
    assert code == 0
    assert "0 views are in" in out
    assert "6 are missing and need 78.3 kB of" in out
    assert "encoded 6 views in" in out
    assert "none is missing" in run("build", "folder", "--root", root, "--out", cache, *OPTIONS, "--views", 1)[1]

    assert run("verify", cache) == (0, f"{cache} is intact\n")
    printed = run("info", cache)[1]
    assert "dinov2-s-embedded (weights " in printed
    assert "3 images, 6 views, " in printed
    assert "4 x 4 tokens of width 384, fp16\n" in printed

    folder = next(path for path in cache.iterdir() if path.is_dir())
    path = next(path for path in entry_files(folder) if path.stem.endswith("-1"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    code, out = run("verify", cache)
    assert code == 1
    assert f"damaged: {path} of image {root / 'images'}" in out
    code, out = run("verify", cache, "--repair")
    assert code == 0
    assert "deleted 1 entries" in out
    assert run("verify", cache)[0] == 0
    assert "encoded 1 views" in run("build", "folder", "--root", root, "--out", cache, "--views", 2, *OPTIONS)[1]

    (root / "images" / "1.png").unlink()
    assert "would drop 2 views" in run("prune", cache, "--dry-run")[1]
    assert "dropped 2 views (24.6 kB), kept 4" in run("prune", cache)[1]
    assert "kept 4" in run("prune", cache, "--image-encoder", "dinov2-s-embedded", "--resolution", 56)[1]
    assert "dropped 4 views" in run("prune", cache, "--resolution", 70)[1]


def test_the_default_folder_is_used(run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FUSIONER_CACHE", str(tmp_path / "mine"))
    run("build", "folder", "--root", root, "--views", 1, *OPTIONS)
    assert run("verify") == (0, f"{tmp_path / 'mine'} is intact\n")


def test_wrong_arguments_create_no_cache(run: Run, root: Path, tmp_path: Path):
    for words, message in [
        (("build", "folder", "--root", root, "--out", tmp_path / "c", "--image-encoder", "dino"), "unknown image"),
        (("build", "folder", "--root", tmp_path / "no", "--out", tmp_path / "c"), "there is no folder"),
        (("build", "folder", "--root", root, "--out", tmp_path / "c", *OPTIONS, "--views", 0), "at least 1 view"),
        (("verify", tmp_path / "c"), "there is no feature cache"),
        (("prune", tmp_path / "c"), "there is no feature cache"),
    ]:
        with pytest.raises(FusionerError, match=message):
            run(*words)
    assert not (tmp_path / "c").exists()


def test_the_defaults_are_those_of_the_small_training(run: Run, root: Path, tmp_path: Path):
    for path in (root / "images").glob("[12].png"):
        path.unlink()
    out = run("build", "folder", "--root", root, "--out", tmp_path / "cache", "--device", "cpu")[1]
    assert f"features of {SMALL.model.image_encoder} at {SMALL.model.resolution} px" in out
    assert f"encoded {SMALL.data.views} views" in out
    assert f"note: 2 masks of {root} have no image: 1, 2" in out
