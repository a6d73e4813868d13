"""Test that malformed images are rejected with a message, without effect on the server or the disk."""

import io
import os
import struct
import tempfile
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fusioner.image import IMAGE_FORMATS
from fusioner.serve.limits import Limits

from .conftest import Running, until

PHOTO = Path(__file__).resolve().parents[2] / "samples" / "chelsea.jpg"
KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "ICO")


def encode(kind: str) -> bytes:
    with Image.open(PHOTO) as photo:
        stream = io.BytesIO()
        photo.resize((96, 64)).save(stream, kind)
    return stream.getvalue()


FILES = {kind: encode(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use a new temporary folder, which must stay empty."""
    folder, before = tmp_path_factory.mktemp("tmp"), tempfile.tempdir
    tempfile.tempdir = str(folder)
    yield folder
    tempfile.tempdir = before


@pytest.fixture(scope="module")
def fuzzed(tmp: Path, start_server: Callable[..., Running]) -> Running:
    return start_server(limits=Limits(max_megapixels=4, max_body_mb=8))


def send(server: Running, content: bytes) -> httpx.Response:
    return server.http.post("/v1/segment", files={"image": ("x", content)}, data={"labels": "cat"})


@pytest.fixture
def lives_on(fuzzed: Running, tmp: Path) -> Iterator[None]:
    """Check after each test that a valid image is still processed and no file is left."""
    yield
    assert send(fuzzed, FILES["PNG"]).status_code == 200
    until(lambda: fuzzed.busy == 0)  # released after the response
    assert os.listdir(tmp) == []


pytestmark = pytest.mark.usefixtures("lives_on")


def refused(answer: httpx.Response, *statuses: int) -> str:
    assert answer.status_code in (statuses or (422,)), answer.text[:200]
    message = answer.json()["error"]["message"]
    assert message
    assert "\n" not in message
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(fuzzed: Running, kind: str) -> None:
    assert send(fuzzed, FILES[kind]).status_code == (422 if kind == "ICO" else 200)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_at_every_part(fuzzed: Running, kind: str) -> None:
    whole = FILES[kind]
    for cut in sorted({0, 1, 4, 12, 20, 40, *(len(whole) * tenth // 10 for tenth in range(1, 10))}):
        answer = send(fuzzed, whole[:cut])
        if answer.status_code != 200:  # pixels may be complete before the end of the file
            refused(answer)
        else:
            assert cut > len(whole) // 2


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=20),
)
def test_flipped_bits(fuzzed: Running, kind: str, flips: list[tuple[float, int]]) -> None:
    content = bytearray(FILES[kind])
    for place, bits in flips:
        content[int(place**2 * len(content))] ^= bits  # more of them in the header, which is more sensitive
    answer = send(fuzzed, bytes(content))
    if answer.status_code != 200:
        refused(answer, 413, 422)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), tail=st.binary(max_size=200), head=st.integers(0, 64))
def test_noise_behind_a_header(fuzzed: Running, kind: str, tail: bytes, head: int) -> None:
    answer = send(fuzzed, FILES[kind][:head] + tail)
    if answer.status_code != 200:
        refused(answer, 413, 422)


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    )


def test_bombs_are_not_decoded(fuzzed: Running) -> None:
    bombs = {
        "just over": png(2001, 2000, bytes(2002 * 2000)),
        "large": png(40_000, 40_000, bytes(10_000_000)),
        "largest": png(2**31 - 1, 2**31 - 1),
        "gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + FILES["GIF"][10:],
        "bmp": FILES["BMP"][:18] + struct.pack("<ii", 100_000, 100_000) + FILES["BMP"][26:],
        "ppm": b"P6 99999 99999 255\n" + bytes(1000),
    }
    for name, bomb in bombs.items():
        message = refused(send(fuzzed, bomb), 413, 422)
        assert "megapixels" in message, name


def test_a_small_frame_around_a_bomb(fuzzed: Running) -> None:
    inner = png(3000, 3000, bytes(3001 * 3000))
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner
    assert "icons are not read" in refused(send(fuzzed, icon))


def test_a_jpeg_of_endless_scans(fuzzed: Running) -> None:
    stream = io.BytesIO()
    Image.new("L", (2000, 2000)).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    slow = content[:last] + content[last:-2] * 2000 + content[-2:]
    assert "scans" in refused(send(fuzzed, slow))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"GIF89a",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
        b"%PDF-1.7",
        b"PK\x03\x04" + bytes(60),
        b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8X" + bytes(30),
        png(0, 10),
        png(10, 0),
        png(10, 10, b"short"),
        b"P6 0 0 255\n",
        b"P5 -5 5 255\n" + bytes(25),
        b"#define x_width 10\n#define x_height 10\n",
    ],
)
def test_other_content_is_refused(fuzzed: Running, content: bytes) -> None:
    refused(send(fuzzed, content))


def test_polyglots_are_read_as_the_picture_they_begin_with(fuzzed: Running) -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        tail = b"<script>alert(1)</script>" + FILES["TIFF"] + b"PK\x05\x06" + bytes(18)
        answer = send(fuzzed, FILES[kind] + tail)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"


def test_hostile_file_names(fuzzed: Running) -> None:
    for name in (
        "../../etc/passwd",
        "a\\..\\b.png",
        'x"\r\nSet-Cookie: a=b',
        "ü" * 400 + ".png",
        "\0",
        "..",
        "<b>.png",
    ):
        form: Any = {"image": (name, FILES["PNG"])}
        content = {"labels": "cat", "name": name, "image": b64encode(FILES["PNG"]).decode()}
        requests: list[dict[str, Any]] = [{"files": form, "data": {"labels": "cat"}}, {"json": content}]
        for sent in requests:
            answer = fuzzed.http.post("/v1/segment", **sent)
            assert answer.status_code == 200
            message = answer.json()["image"]
            assert message
            assert not set("/\\\r\n\0") & set(message)
            assert "set-cookie" not in answer.headers
            assert answer.headers["content-disposition"].isascii()


def test_large_uploads_stay_in_memory(fuzzed: Running, tmp: Path) -> None:
    """Multipart parsers write parts over a megabyte to a file, which would fail in this read-only folder."""
    seen: list[str] = []
    original = tempfile.SpooledTemporaryFile.rollover

    def rollover(self: Any) -> None:
        seen.append("rolled over")
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
        assert send(fuzzed, png(2000, 2000, os.urandom(2001 * 1500))).status_code in (200, 422)
    assert not seen


def test_the_corpus_covers_every_format() -> None:
    assert set(IMAGE_FORMATS) - {"DIB", "HEIF"} == set(KINDS)  # HEIF is optional
