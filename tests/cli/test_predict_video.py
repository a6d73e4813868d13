"""`fusioner predict` on videos: a toy network for files and errors, the bundled model for masks."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusioner.video import open_video, write_video

pytest.importorskip("av")
Predict = Callable[..., tuple[int, str, str]]
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
STEP, RATE = 4, 12  # pixels per frame, frames per second


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video that pans over the astronaut to the right."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with Image.open(SAMPLES / "astronaut.jpg") as photo, write_video(path, Fraction(RATE)) as writer:
        for index in range(31):
            writer.add(photo.crop((40 + STEP * index, 40, 360 + STEP * index, 340)), index / RATE)
    return path


def test_frames_and_a_video_of_them(tiny_predict: Predict, clip: Path) -> None:
    code, out, err = tiny_predict(clip, "--no-background", "--csv", "table.csv", "--contact-sheet", "sheet.png")
    assert (code, err) == (0, "")
    frames = [f"clip-{index:06}" for index in (0, 10, 20, 30)]
    assert set(os.listdir("out")) == {"clip.overlay.mp4"} | {
        f"{name}{end}" for name in frames for end in (".png", ".json")
    }
    assert [line.split(":")[0] for line in out.splitlines()[:4]] == [f"{clip} frame {n}" for n in (0, 10, 20, 30)]
    assert out.splitlines()[4:] == [
        f"{clip}: 4 frames -> out/clip.overlay.mp4",
        "4 frames segmented into out; wrote table.csv; wrote sheet.png",
    ]
    assert json.loads(Path("out/clip-000020.json").read_text())["image"] == "clip.mp4 frame 20"
    with open("table.csv", newline="") as file:
        assert [row["frame"] for row in csv.DictReader(file)] == [str(n) for n in (0, 0, 10, 10, 20, 20, 30, 30)]
    with open_video(Path("out/clip.overlay.mp4")) as video:
        assert video.rate == Fraction(RATE, 10)
        assert [round(frame.time, 2) for frame in video.frames()] == [0.0, 0.83, 1.67, 2.5]


def test_a_video_alone_or_frames_alone(tiny_predict: Predict, clip: Path) -> None:
    assert tiny_predict(clip, "--format", "overlay", "--frame-step", "15")[0] == 0
    assert os.listdir("out") == ["clip.overlay.mp4"]
    assert tiny_predict(clip, "--format", "mask", "--frame-step", "15", "--out", "masks")[0] == 0
    assert sorted(os.listdir("masks")) == ["clip-000000.png", "clip-000015.png", "clip-000030.png"]


def test_existing_videos_are_skipped(tiny_predict: Predict, clip: Path) -> None:
    tiny_predict(clip)
    skip = "1 skipped (their results are there)"
    assert tiny_predict(clip, "--skip-existing")[1] == f"0 pictures segmented into out, {skip}\n"
    photo = SAMPLES / "coffee.jpg"
    assert tiny_predict(photo, clip, "--skip-existing", "--csv", "table.csv")[1].endswith(f"{skip}; wrote table.csv\n")
    with open("table.csv", newline="") as file:
        assert {row["picture"] for row in csv.DictReader(file)} == {str(photo)}
    assert tiny_predict(clip, "--skip-existing", "--labels", "dog")[1].endswith("4 frames segmented into out\n")
    Path("out/clip.overlay.mp4").unlink()
    assert tiny_predict(clip, "--skip-existing", "--labels", "dog")[1].endswith("4 frames segmented into out\n")
    Path("out/clip-000010.png").unlink()
    partial = tiny_predict(clip, "--skip-existing", "--labels", "dog", "--format", "mask")[1]
    assert partial.endswith("1 frame segmented into out, 3 skipped (their results are there)\n")


def test_a_damaged_video_yields_its_readable_frames(tiny_predict: Predict, clip: Path, tmp_path: Path) -> None:
    raw = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) * 9 // 10])
    (tmp_path / "none.mp4").write_bytes(raw[:200])
    code, out, err = tiny_predict("cut.mp4", "none.mp4", SAMPLES / "coffee.jpg", "--frame-step", "5")
    assert code == 2
    assert err.splitlines()[0].startswith("error: cut.mp4 is corrupt: ")
    assert err.splitlines()[1:] == ["error: none.mp4 is corrupt or not a video"]
    assert "1 picture and " in out
    assert out.endswith(" segmented into out, 2 failed\n")
    with open_video(Path("out/cut.overlay.mp4")) as video:
        assert len(list(video.frames())) > 1


def test_without_pyav_pictures_are_still_done(
    tiny_predict: Predict, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    code, out, err = tiny_predict(clip, SAMPLES / "coffee.jpg")
    assert (code, err) == (2, "error: videos need PyAV: pip install 'fusioner[video]'\n")
    assert out.endswith("1 picture segmented into out, 1 failed\n")


@pytest.mark.slow
def test_masks_move_with_the_camera(clip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fusioner", "predict", str(clip), "--labels", "person", "--mode", "whole"]
    command += ["--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "error" in done.stderr) == (0, False)
    masks = [np.asarray(Image.open(tmp_path / f"clip-{index:06}.png")) == 1 for index in (0, 10, 20, 30)]
    for number, mask in enumerate(masks[1:], start=1):
        moved = 10 * STEP * number
        followed = (mask[:, : 320 - moved] == masks[0][:, moved:]).mean()
        assert followed > 0.84  # she leaves the frame, and parts of the suit are lost
        assert followed > (mask == masks[0]).mean() + 0.05
    with open_video(tmp_path / "clip.overlay.mp4") as drawn, open_video(clip) as plain:
        pairs = list(zip(drawn.frames(), plain.frames(10), masks, strict=True))
    for drawing, frame, mask in pairs:
        tint = drawing.rgb[:300].astype(int) - frame.rgb
        blue = tint[..., 2] - tint[..., 0] > 20  # the first label's colour
        assert (blue == mask).mean() > 0.9
