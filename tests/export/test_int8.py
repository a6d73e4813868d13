"""int8 export: smaller files, masks within the limit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.cli.main import main
from fusioner.export.bundle import read_bundle
from fusioner.export.parity import LIMITS
from fusioner.loading import load

SAMPLES = Path(__file__).resolve().parents[2] / "samples"


@pytest.mark.slow
def test_int8_export_keeps_the_masks(
    trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a limit for random weights, whose answers lie closer to each other than trained ones."""
    monkeypatch.setitem(LIMITS, "int8", (float("inf"), 0.2))
    assert main(["export", "--model", str(trained), "--out", str(tmp_path), "--int8"]) == 0
    assert "calibrating int8" in capsys.readouterr().out
    bundle = read_bundle(tmp_path)
    assert bundle.precision == "int8"
    assert (tmp_path / "image.onnx").stat().st_size < (exported / "image.onnx").stat().st_size
    photo = np.asarray(Image.open(SAMPLES / "chelsea.jpg"))
    one, two = (load(folder)(photo, ["cat", "sofa"]).label_map for folder in (exported, tmp_path))
    assert (one != two).mean() < 0.2
