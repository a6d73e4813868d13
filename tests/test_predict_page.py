"""Test that the commands of docs/predict.md run."""

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from fusioner.video import write_video

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    pytest.importorskip("av")
    (tmp_path / "samples").mkdir()
    for name in ("chelsea.jpg", "coffee.jpg"):
        (tmp_path / "samples" / name).write_bytes((REPO / "samples" / name).read_bytes())
    with (
        Image.open(REPO / "samples" / "chelsea.jpg") as photo,
        write_video(tmp_path / "clip.mp4", Fraction(12)) as video,
    ):
        for index in range(6):
            video.add(photo.crop((index, 0, index + 320, 240)), index / 12)
    (commands,) = re.findall(r"```bash\n(.*?)```", (REPO / "docs" / "predict.md").read_text("utf-8"), re.DOTALL)
    cheap = "--mode whole"  # takes a fifth of the time
    script = f'set -e -o pipefail\nfusioner() {{ "{sys.executable}" -m fusioner "$@" {cheap}; }}\n{commands}'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {
        *("fusioner-out/chelsea.json", "fusioner-out/clip.overlay.mp4", "masks/coffee.overlay.png", "table.csv"),
        *("sheet.jpg", "masks/samples/coffee.coco.json", "mask.png"),
    } <= made
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.size == (451, 300)
