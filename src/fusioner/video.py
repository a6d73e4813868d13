"""Read video frames, upright, and write the results as a video. Needs PyAV (the `video` extra)."""

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

# FFmpeg's other readers are excluded: some open URLs named in a file (playlists), none is a camera's format.
_READERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf"
_ENCODERS = {"libx264": "H.264", "libopenh264": "H.264", "mpeg4": "MPEG-4"}
_TICKS_PER_SECOND = 60_000  # whole numbers for common frame rates, and within the range of MPEG-4
_BT709 = 1  # matrix, primaries and transfer that players assume


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its index in the video (from 0), its time in seconds, and its upright RGB pixels."""

    index: int
    time: float
    rgb: UInt8[np.ndarray, "h w 3"]


class Video:
    """A video open for reading.

    Attributes:
        rate: frames per second (the mean if variable).
        count: number of frames according to the file, or None if unknown.
    """

    def __init__(self, path: Path, container: "InputContainer") -> None:
        self.path, self._container = path, container
        self._stream = stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._duration = _duration(stream)
        self.count = stream.frames or (round(self._duration * self.rate) if self._duration else None)
        self._read, self._broken, self._end = 0, 0, 0.0

    def frames(self, frame_step: int = 1) -> Iterator[Frame]:
        """Yield frames 0, `frame_step`, 2 * `frame_step` ...; corrupt ones are skipped and reported by `damage`."""
        start = float((self._stream.start_time or 0) * (self._stream.time_base or 0))
        for index, frame in enumerate(self._decoded()):
            time = index / float(self.rate) if frame.pts is None else max(0.0, frame.time - start)
            self._end = max(self._end, time + 1 / float(self.rate))
            self._read += 1
            if index % frame_step == 0:
                yield Frame(index, time, _upright(frame))

    @property
    def damage(self) -> str | None:
        """After the last frame: one sentence about unreadable parts, or None."""
        if not self._read:
            return f"{self.path} is corrupt: no frame can be read"
        faults = [f"{self._broken} broken frame{'s' * (self._broken > 1)}"] if self._broken else []
        if self._duration is not None and self._duration - self._end > max(0.5, 2 / float(self.rate)):
            faults.append(f"it ends after {self._end:.1f} of {self._duration:.1f} s")
        return f"{self.path} is corrupt: {' and '.join(faults)}" if faults else None

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
    """Open a video for reading.

    Raises:
        FusionerError: PyAV is missing, or the file is missing, not a video, or corrupt at its beginning.
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
        raise FusionerError(f"{path} is corrupt or not a video") from error
    with container:
        if not container.streams.video:
            reason = "contains only sound" if container.streams.audio else "is corrupt or not a video"
            raise FusionerError(f"{path} {reason}")
        yield Video(path, container)


class VideoWriter:
    """Writes an MP4 in yuv420p: H.264 if PyAV has an encoder for it, else MPEG-4 Part 2.

    Attributes:
        count: number of frames written.
        codec: "H.264" or "MPEG-4", once there is a frame.
    """

    def __init__(self, path: Path, rate: Fraction, stack: ExitStack) -> None:
        self.count, self.codec = 0, ""
        self._path, self._rate, self._stack = path, rate, stack
        self._last_pts = -1
        self._output: tuple[OutputContainer, VideoStream] | None = None

    @property
    def remark(self) -> str:
        """A warning about the codec for the user, or an empty string."""
        if self.codec == "H.264":
            return ""
        return f" ({self.codec}, which browsers do not play: this PyAV has no H.264 encoder)"

    def add(self, picture: Image.Image, time: float) -> None:
        """Append an RGB picture shown at `time` (seconds, increasing); all are resized to the size of the first.

        Raises:
            FusionerError: the file cannot be written, or PyAV is missing or has no encoder.
        """
        av = import_av()
        even = ImageOps.expand(picture, (0, 0, picture.width % 2, picture.height % 2), fill="white")
        container, stream = self._output = self._output or self._open(even.size)
        size = stream.width, stream.height
        frame = av.VideoFrame.from_image(even if even.size == size else even.resize(size))
        frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
        self._last_pts = frame.pts = max(self._last_pts + 1, round(time * _TICKS_PER_SECOND))
        frame.time_base, frame.duration = Fraction(1, _TICKS_PER_SECOND), round(_TICKS_PER_SECOND / self._rate)
        container.mux(stream.encode(frame))
        self.count += 1

    def finish(self) -> None:
        """Write the frames that the encoder still holds."""
        if self._output:
            container, stream = self._output
            container.mux(stream.encode(None))

    def _open(self, size: tuple[int, int]) -> "tuple[OutputContainer, VideoStream]":
        av = import_av()
        encoder = next((name for name in _ENCODERS if _has_encoder(name)), None)
        if encoder is None:
            raise FusionerError(f"cannot write {self._path}: this PyAV has no encoder for H.264 or MPEG-4")
        self.codec = _ENCODERS[encoder]
        temporary = self._stack.enter_context(atomic_write(self._path))
        options = {"movflags": "+faststart"}  # can be played while it loads
        container = self._stack.enter_context(av.open(str(temporary), "w", format="mp4", options=options))
        quality = {"crf": "20"} if encoder == "libx264" else {}
        stream = cast("VideoStream", container.add_stream(encoder, rate=self._rate, options=quality))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS_PER_SECOND)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        if not quality:  # encoders controlled by bit rate: enough for drawings with sharp edges
            context.bit_rate = round(size[0] * size[1] * 0.25 * max(1, self._rate))
        return container, stream


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[VideoWriter]:
    """Open a video for writing, about `rate` pictures per second; without a picture or on an error no file is left.

    Raises:
        FusionerError: see `VideoWriter.add`.
    """
    with ExitStack() as stack:
        writer = VideoWriter(path, rate, stack)
        yield writer
        writer.finish()


def import_av() -> ModuleType:
    """Import PyAV; FusionerError if it is not installed."""
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
    """Convert to RGB, rotated as the display matrix of phone videos says (degrees counterclockwise)."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _duration(stream: "VideoStream") -> float | None:
    """Return the duration of the video stream in seconds according to the file; sound may be longer."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if text := stream.metadata.get("DURATION"):  # Matroska: 00:00:02.000000000
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return None
