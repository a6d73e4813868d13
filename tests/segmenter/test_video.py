"""Reading and writing of videos, with files that PyAV makes of a photograph."""

import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fusioner import video as video_module
from fusioner.errors import FusionerError
from fusioner.video import open_video, write_video

pytest.importorskip("av")
PHOTO = Image.fromarray(data.chelsea())
RATE = 12


def picture(index: int) -> Image.Image:
    """Return frame `index` of a camera that pans to the right."""
    return PHOTO.crop((3 * index, 40, 3 * index + 192, 184))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with write_video(path, Fraction(RATE)) as writer:
        for index in range(36):
            writer.add(picture(index), index / RATE)
    return path


def difference(frame: np.ndarray, original: Image.Image) -> float:
    return float(np.abs(frame.astype(int) - np.asarray(original)).mean())


def test_every_nth_frame_in_its_colours_and_at_its_time(clip: Path) -> None:
    with open_video(clip) as video:
        assert (video.rate, video.count) == (RATE, 36)
        frames = list(video.frames(10))
        assert video.damage is None
    assert [frame.index for frame in frames] == [0, 10, 20, 30]
    for frame in frames:
        assert frame.time == pytest.approx(frame.index / RATE, abs=0.001)
        assert difference(frame.rgb, picture(frame.index)) < 5
        assert difference(frame.rgb, picture(frame.index + 5)) > 10


def test_rotation_metadata_is_applied(clip: Path, tmp_path: Path) -> None:
    raw = bytearray(clip.read_bytes())
    matrix = raw.index(b"tkhd") + 44  # version 0: 4 + 4 of name and flags, 20 of times and ids, 16 of the rest
    assert struct.unpack(">9i", raw[matrix : matrix + 36])[:5] == (65536, 0, 0, 0, 65536)
    raw[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # a quarter clockwise
    (tmp_path / "held.mp4").write_bytes(raw)
    with open_video(tmp_path / "held.mp4") as video:
        first = next(iter(video.frames()))
    assert difference(first.rgb, picture(0).transpose(Image.Transpose.ROTATE_270)) < 5


def test_a_truncated_video_yields_its_frames(clip: Path, tmp_path: Path) -> None:
    raw = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(raw[: len(raw) * 4 // 5])  # the index is at the start of the file
    with open_video(tmp_path / "cut.mp4") as video:
        frames = list(video.frames())
        assert 5 < len(frames) < 36
        assert video.damage is not None
        assert f"{tmp_path}/cut.mp4 is corrupt: " in video.damage
        assert "of 3.0 s" in video.damage
    assert difference(frames[3].rgb, picture(3)) < 5


def test_corrupt_frames_are_reported(clip: Path, tmp_path: Path) -> None:
    raw = bytearray(clip.read_bytes())
    for place in np.random.default_rng(0).integers(len(raw) // 3, len(raw), 40):
        raw[place] ^= 255
    (tmp_path / "broken.mp4").write_bytes(raw)
    with open_video(tmp_path / "broken.mp4") as video:
        assert len(list(video.frames())) > 10
        assert video.damage is not None
        assert "broken frame" in video.damage


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no video"),
        (b"", "is corrupt or not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://localhost/x.ts\n", "is corrupt or not a video"),  # a list of addresses
        (bytes(5000), "is corrupt or not a video"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(FusionerError, match=reason), open_video(tmp_path / "clip.mp4"):
        pass


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FusionerError, match=r"videos need PyAV: pip install 'fusioner\[video\]'"), open_video(clip):
        pass


def test_pictures_of_odd_and_other_sizes(tmp_path: Path) -> None:
    with write_video(tmp_path / "odd.mp4", Fraction(3)) as writer:
        for index, size in enumerate([(301, 201), (301, 201), (150, 100)]):
            writer.add(PHOTO.resize(size), index / 3)
        assert (writer.count, writer.codec, writer.remark) == (3, "H.264", "")
    with open_video(tmp_path / "odd.mp4") as video:
        frames = list(video.frames())
        assert video.rate == 3
    assert [frame.rgb.shape for frame in frames] == [(202, 302, 3)] * 3
    assert difference(frames[0].rgb[:201, :301], PHOTO.resize((301, 201))) < 6


def test_a_build_without_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "_ENCODERS", {"nothing": "H.264", "mpeg4": "MPEG-4"})
    with write_video(tmp_path / "old.mp4", Fraction(3)) as writer:
        writer.add(PHOTO, 0)
        assert writer.remark == " (MPEG-4, which browsers do not play: this PyAV has no H.264 encoder)"
    with open_video(tmp_path / "old.mp4") as video:
        assert len(list(video.frames())) == 1
    monkeypatch.setattr(video_module, "_ENCODERS", {"nothing": "H.264"})
    with pytest.raises(FusionerError, match="no encoder"), write_video(tmp_path / "none.mp4", Fraction(3)) as writer:
        writer.add(PHOTO, 0)
    assert not (tmp_path / "none.mp4").exists()


def test_an_interrupted_video_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with write_video(tmp_path / "new.mp4", Fraction(3)) as writer:
            writer.add(PHOTO, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with write_video(tmp_path / "empty.mp4", Fraction(3)):
        pass
    assert not list(tmp_path.iterdir())
