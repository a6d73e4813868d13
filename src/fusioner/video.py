"""Every n-th frame of a video, upright, and a video of what was found in them. Needs PyAV (the `video` extra)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from fusioner.errors import FusionerError
from fusioner.io import atomic_write

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's other readers are left out: some follow addresses that a file names (playlists), none holds phone videos.
_READERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf"
_WRITERS = {"libx264": "H.264", "libopenh264": "H.264", "mpeg4": "MPEG-4"}
_CLOCK = 60_000  # ticks a second: whole ones for common rates, and what MPEG-4 can count
_BT709 = 1  # the matrix, primaries and transfer that players take for granted


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its number among all of the video (from 0), when it is shown (s), and its upright RGB pixels."""

    index: int
    time: float
    rgb: UInt8[np.ndarray, "h w 3"]


class Video:
    """A video file open for reading, from beginning to end.

    Attributes:
        rate: frames a second (of variable rates the mean).
        count: how many frames it says it has; None where it does not say.
    """

    def __init__(self, path: Path, container: "InputContainer") -> None:
        self.path, self._container = path, container
        self._stream = stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._length = _length(container)
        guess = round(self._length * self.rate) if self._length else None
        self.count = stream.frames or guess
        self._read, self._broken, self._end = 0, 0, 0.0

    def frames(self, every: int = 1) -> Iterator[Frame]:
        """Frames 0, `every`, 2 * `every` ...; what is damaged is passed over and told by `damage`."""
        for frame in self._decoded():
            start = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
            time = self._read / float(self.rate) if frame.pts is None else max(0.0, frame.time - start)
            self._end = max(self._end, time + 1 / float(self.rate))
            self._read += 1
            if (self._read - 1) % every == 0:
                yield Frame(self._read - 1, time, _upright(frame))

    @property
    def damage(self) -> str | None:
        """After the last frame: one sentence of what could not be read, or None."""
        if not self._read:
            return f"{self.path} is damaged: no frame of it can be read"
        faults = [f"{self._broken} broken frame{'s' * (self._broken > 1)}"] if self._broken else []
        if self._length is not None and self._length - self._end > max(0.5, 2 / float(self.rate)):
            faults.append(f"it ends after {self._end:.1f} of {self._length:.1f} s")
        return f"{self.path} is damaged: {' and '.join(faults)}" if faults else None

    def _decoded(self) -> Iterator["VideoFrame"]:
        from av.error import FFmpegError

        packets = self._container.demux(self._stream)
        while True:
            try:
                frames = next(packets).decode()
            except StopIteration:
                return
            except FFmpegError:
                self._broken += 1
                continue
            for frame in frames:
                self._broken += frame.is_corrupt
                yield frame


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """A video to read.

    Raises:
        FusionerError: PyAV is missing; the file is missing, or not a video, or damaged at its beginning.
    """
    av = import_av()
    from av.error import FFmpegError

    if not path.is_file():
        raise FusionerError(f"there is no video {path}")
    try:
        container = av.open(f"file:{path}", options={"format_whitelist": _READERS})
    except OSError as error:
        raise FusionerError(f"cannot read video {path}: {error.strerror or error}") from error
    except FFmpegError as error:
        raise FusionerError(f"{path} is damaged or not a video") from error
    with container:
        if not container.streams.video:
            reason = "holds no pictures, only sound" if container.streams.audio else "is damaged or not a video"
            raise FusionerError(f"{path} {reason}")
        yield Video(path, container)


class VideoWriter:
    """An MP4 in the making, yuv420p: H.264 where the build of PyAV has it, else MPEG-4 Part 2.

    Attributes:
        count: frames written.
        codec: "H.264" or "MPEG-4", once there is a frame.
    """

    def __init__(self, path: Path, rate: Fraction, stack: ExitStack) -> None:
        self.count, self.codec = 0, ""
        self._path, self._rate, self._stack = path, rate, stack
        self._last = -1
        self._out: tuple[OutputContainer, VideoStream] | None = None

    @property
    def remark(self) -> str:
        """What a user has to know of the file, in brackets."""
        plain = self.codec == "H.264"
        return "" if plain else f" ({self.codec}, which browsers do not play: this PyAV has no H.264 encoder)"

    def add(self, picture: Image.Image, time: float) -> None:
        """Append an RGB picture shown at `time` (s, rising); all get the size of the first.

        Raises:
            FusionerError: the file cannot be written, or PyAV is missing or has no encoder for it.
        """
        av = import_av()
        even = ImageOps.expand(picture, (0, 0, picture.width % 2, picture.height % 2), fill="white")
        container, stream = self._out = self._out or self._begin(even.size)
        size = stream.width, stream.height
        frame = av.VideoFrame.from_image(even if even.size == size else even.resize(size))
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
        self._last = frame.pts = max(self._last + 1, round(time * _CLOCK))
        frame.time_base, frame.duration = Fraction(1, _CLOCK), round(_CLOCK / self._rate)
        container.mux(stream.encode(frame))
        self.count += 1

    def finish(self) -> None:
        """Write what the encoder still holds."""
        if self._out:
            self._out[0].mux(self._out[1].encode(None))

    def _begin(self, size: tuple[int, int]) -> "tuple[OutputContainer, VideoStream]":
        av = import_av()
        encoder = next((name for name in _WRITERS if _has_encoder(name)), None)
        if encoder is None:
            raise FusionerError(f"cannot write {self._path}: this PyAV has no encoder for H.264 or MPEG-4")
        self.codec = _WRITERS[encoder]
        beside = self._stack.enter_context(atomic_write(self._path))
        options = {"movflags": "+faststart"}  # plays while it loads
        container = self._stack.enter_context(av.open(str(beside), "w", format="mp4", options=options))
        quality = {"crf": "20"} if encoder == "libx264" else {}
        stream = cast("VideoStream", container.add_stream(encoder, rate=self._rate, options=quality))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _CLOCK)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if not quality:  # encoders that go by bits: enough for drawings with sharp edges
            context.bit_rate = round(size[0] * size[1] * 0.25 * max(1, self._rate))
        return container, stream


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[VideoWriter]:
    """A video to write, about `rate` pictures a second; without a picture, or after an error, there is no file.

    Raises:
        FusionerError: see `VideoWriter.add`.
    """
    with ExitStack() as stack:
        writer = VideoWriter(path, rate, stack)
        yield writer
        writer.finish()


def import_av() -> ModuleType:
    """PyAV; FusionerError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise FusionerError("videos need PyAV: pip install 'fusioner[video]'") from error
    return av


def _has_encoder(name: str) -> bool:
    from av.codec.codec import Codec, UnknownCodecError

    try:
        return Codec(name, "w").is_encoder
    except UnknownCodecError:
        return False


def _upright(frame: "VideoFrame") -> UInt8[np.ndarray, "h w 3"]:
    """RGB, turned as the display matrix says: phones film sideways and note it there (degrees counterclockwise)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _length(container: "InputContainer") -> float | None:
    """How long the file says its pictures last, s; sound may last longer."""
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if named := stream.metadata.get("DURATION"):  # Matroska: 00:00:02.000000000
        hours, minutes, seconds = named.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return None
