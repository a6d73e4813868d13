"""Reading of every kind of picture, written by the tests."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from fusioner import image
from fusioner.errors import FusionerError
from fusioner.image import CAMERA_RAW, HEIF, MAX_PIXELS, image_size, image_suffixes, list_images, read_image, resize


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Return a photograph without symmetry, 60 rows of 90 columns."""
    return np.asarray(Image.fromarray(data.chelsea()).resize((90, 60)))


@pytest.fixture(scope="module")
def ramp() -> np.ndarray:
    """Return 8-bit grey values from 0 to 255, 16 x 256."""
    return np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def close(one: np.ndarray, other: np.ndarray, tolerance: float = 4.0) -> bool:
    return one.shape == other.shape and float(np.abs(one.astype(int) - other.astype(int)).mean()) <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_formats(photo: np.ndarray, kind: str) -> None:
    rgb = read_image(encoded(Image.fromarray(photo), kind))
    assert rgb.dtype == np.uint8
    assert rgb.flags.writeable
    assert close(rgb, photo, 8.0)


def test_all_sources_give_the_same(photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "фото 1.png"
    Image.fromarray(photo).save(path)
    with path.open("rb") as file:
        sources = [path, str(path), path.read_bytes(), file, Image.open(path), photo, Image.fromarray(photo)]
        for source in sources:
            assert np.array_equal(read_image(source), photo)


def test_a_pipe_and_a_text_file(photo: np.ndarray, tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as pipe, os.fdopen(write, "wb") as sink:
        sink.write(encoded(Image.fromarray(photo[:9, :9]), "PNG"))
        sink.close()
        assert np.array_equal(read_image(pipe), photo[:9, :9])
    (tmp_path / "a.txt").write_text("text")
    with (tmp_path / "a.txt").open() as text, pytest.raises(FusionerError, match="binary mode"):
        read_image(text)  # type: ignore[arg-type]


def test_the_callers_array_is_not_shared(photo: np.ndarray) -> None:
    array = photo.copy()
    rgb = read_image(array)
    array[:] = 0
    assert np.array_equal(rgb, photo)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_orientations_come_out_upright(photo: np.ndarray, orientation: int, kind: str) -> None:
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # orientation that maps the upright picture to the stored one
    notes = Image.Exif()
    notes[0x0112] = undo.get(orientation, 1)
    tagged = Image.open(io.BytesIO(encoded(Image.fromarray(photo), "PNG", exif=notes)))
    stored = ImageOps.exif_transpose(tagged)
    notes[0x0112] = orientation
    assert close(read_image(encoded(stored, kind, exif=notes)), photo, 8.0)


def test_broken_camera_notes_do_not_matter(photo: np.ndarray) -> None:
    for notes in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\0"):
        assert close(read_image(encoded(Image.fromarray(photo), "JPEG", exif=notes)), photo, 8.0)


def test_an_orientation_outside_1_to_8_is_ignored(photo: np.ndarray) -> None:
    notes = Image.Exif()
    notes[0x0112] = 77
    assert close(read_image(encoded(Image.fromarray(photo), "JPEG", exif=notes)), photo, 8.0)


def test_cmyk(photo: np.ndarray) -> None:
    cmyk = Image.fromarray(photo).convert("CMYK")
    assert close(read_image(encoded(cmyk, "JPEG")), photo, 6.0)
    assert close(read_image(encoded(cmyk, "TIFF")), photo, 1.0)


def test_adobe_inverted_cmyk(photo: np.ndarray) -> None:
    """Photoshop inverts CMYK in JPEG and marks it by APP14, which Pillow writes and reads too."""
    raw = encoded(Image.fromarray(photo).convert("CMYK"), "JPEG")
    assert b"Adobe" in raw[:64]
    assert close(read_image(raw), photo, 6.0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(ramp: np.ndarray, kind: str) -> None:
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    rgb = read_image(encoded(deep, kind))
    assert np.array_equal(rgb, np.repeat(ramp[..., None], 3, axis=2))


def test_16_bit_big_endian_and_portable_grey_map(ramp: np.ndarray) -> None:
    swapped = Image.frombytes("I;16B", ramp.shape[::-1], (ramp.astype(">u2") * 257).tobytes())
    assert np.array_equal(read_image(encoded(swapped, "TIFF"))[..., 0], ramp)
    pgm = b"P5 256 16 65535\n" + (ramp.astype(">u2") * 257).tobytes()
    assert Image.open(io.BytesIO(pgm)).mode == "I"
    assert np.array_equal(read_image(pgm)[..., 0], ramp)


def test_32_bit_and_float_grey(ramp: np.ndarray) -> None:
    expected = np.repeat(ramp[..., None], 3, axis=2)
    wide = Image.fromarray(ramp.astype(np.int32) * 1_000_000 - 5)
    assert wide.mode == "I"
    assert np.array_equal(read_image(encoded(wide, "TIFF")), expected)
    assert np.array_equal(read_image(Image.fromarray(ramp.astype(np.int32))), expected)
    assert np.array_equal(read_image(Image.fromarray(ramp.astype(np.float32) / 255)), expected)
    assert np.array_equal(read_image(Image.fromarray(ramp.astype(np.float32))), expected)
    with_holes = ramp.astype(np.float32)
    with_holes[0, :2] = np.nan, np.inf
    assert np.array_equal(read_image(encoded(Image.fromarray(with_holes), "TIFF"))[1:], expected[1:])


def test_a_flat_deep_image_does_not_divide_by_zero() -> None:
    assert read_image(np.full((3, 4), -7, np.int64)).shape == (3, 4, 3)


def test_16_bit_colour_png(photo: np.ndarray) -> None:
    """Write the file by hand, because Pillow cannot write 48-bit PNG."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in photo)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", photo.shape[1], photo.shape[0], 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert close(read_image(png), photo, 1.0)


def color_profile(primaries: list[tuple[float, float]], gamma: float) -> bytes:
    """Return an ICC profile of a matrix and a gamma, with the white point D65."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    matrix, white = np.stack([xyz(*point) for point in primaries], 1), xyz(0.3127, 0.3290)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1, 0.8249])
    adapted = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford
    columns = (adapted @ matrix * np.linalg.solve(matrix, white)).T

    def fixed(values: np.ndarray) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(82)
    tags = [(b"desc", name), (b"cprt", b"text\0\0\0\0x\0\0\0"), (b"wtpt", b"XYZ \0\0\0\0" + fixed(d50))]
    tags += [
        (letter + b"XYZ", b"XYZ \0\0\0\0" + fixed(column))
        for letter, column in zip((b"r", b"g", b"b"), columns, strict=True)
    ]
    tags += [(letter + b"TRC", curve) for letter in (b"r", b"g", b"b")]
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags:
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(">I", start + len(body)) + b"lcms" + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + fixed(d50)
    return header + bytes(128 - len(header)) + table + body


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize(
    "primaries",
    [
        pytest.param([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], id="Display P3"),
        pytest.param([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], id="Adobe RGB"),
        pytest.param([(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)], id="ProPhoto"),
    ],
)
def test_colour_profiles_are_honoured(
    photo: np.ndarray, primaries: list[tuple[float, float]], mode: str, kind: str
) -> None:
    if (mode, kind) == ("RGBA", "JPEG"):
        return
    from PIL import ImageCms

    content = color_profile(primaries, 1.8 if primaries[0][0] > 0.7 else 2.2)
    wide = ImageCms.ImageCmsProfile(io.BytesIO(content))
    stored = ImageCms.profileToProfile(Image.fromarray(photo), ImageCms.createProfile("sRGB"), wide, outputMode="RGB")
    assert stored is not None
    assert not close(np.asarray(stored), photo, 4.0)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    assert close(read_image(encoded(stored.convert(mode), kind, icc_profile=content, **options)), photo, 3.0)


def ink_profile(cyan: tuple[int, int, int]) -> bytes:
    """Return an ICC profile of a press that prints Lab `cyan` with its first ink, and grey by black ink."""
    corners = np.zeros((2, 2, 2, 2, 3), np.uint8)  # C M Y K; L in 0..255, a and b plus 128
    corners[..., 0, :], corners[..., 1, :] = (255, 128, 128), (0, 128, 128)
    corners[1, :, :, 0] = (round(cyan[0] * 2.55), cyan[1] + 128, cyan[2] + 128)
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + corners.tobytes() + ramp * 3
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(82)
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    tags = ((b"desc", name), (b"wtpt", white), (b"A2B0", table))
    index, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags:
        index += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(">I", 132 + 12 * len(tags) + len(body)) + b"lcms" + struct.pack(">I", 0x02400000)
    header += b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + index + body


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_the_colour_profile_of_cmyk_is_honoured(kind: str) -> None:
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255
    content = ink_profile((50, 60, 40))
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    rgb = read_image(encoded(Image.fromarray(inks, "CMYK"), kind, icc_profile=content, **options))
    assert rgb[:, :14].min() > 250  # paper
    assert np.abs(rgb[:, 18:].astype(int) - (208, 62, 55)).max() < 8  # Lab 50, 60, 40; without a profile 0, 255, 255


def test_a_colour_profile_that_does_not_fit_is_ignored(photo: np.ndarray) -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for content in (b"garbage", srgb, srgb[:200]):
        assert np.array_equal(read_image(encoded(Image.fromarray(photo), "PNG", icc_profile=content)), photo)
    grey = Image.fromarray(photo[..., 0])
    assert np.array_equal(read_image(encoded(grey, "PNG", icc_profile=srgb))[..., 0], photo[..., 0])


def written(path: Path, *pages: np.ndarray, byteorder: Any = None, **options: Any) -> tuple[np.ndarray, list[str]]:
    """Write a TIFF; return the pixels read and the notes without the path."""
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(path, byteorder=byteorder) as writer:
        for page in pages:
            writer.write(page, **options)
    notes: list[str] = []
    rgb = read_image(path, on_note=notes.append)
    assert all(note.startswith(f"{path} ") for note in notes)
    return rgb, [note.removeprefix(f"{path} ") for note in notes]


def test_a_fourth_band_of_a_tiff_is_alpha_only_if_plausible(photo: np.ndarray, tmp_path: Path) -> None:
    infrared = np.dstack([photo, photo[..., 1] // 3])
    clear = np.dstack([photo, np.where(np.arange(90) < 45, 0, 255) * np.ones((60, 1))]).astype(np.uint8)
    for extra in (["unassalpha"], ["unspecified"]):
        rgb, notes = written(tmp_path / "a.tif", infrared, photometric="rgb", extrasamples=extra)
        assert np.array_equal(rgb, photo)
        assert notes == ["has 4 bands: only the first 3 are read, as colours"]
    rgb, notes = written(tmp_path / "b.tif", clear, photometric="rgb", extrasamples=["unassalpha"])
    assert (rgb[:, :45] == 255).all()
    assert np.array_equal(rgb[:, 45:], photo[:, 45:])
    assert notes == []


def test_pages_of_a_tiff_are_counted_and_thumbnails_are_none(photo: np.ndarray, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rgb, notes = written(tmp_path / "a.tif", photo, photo[::-1], photo, photometric="rgb")
    assert np.array_equal(rgb, photo)
    assert notes == ["has 3 pages: only the first is read"]
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(photo[::5, ::5], photometric="rgb", subfiletype=1)
        writer.write(photo, photometric="rgb", subfiletype=0)
    assert np.array_equal(read_image(tmp_path / "b.tif"), photo)
    assert image_size(tmp_path / "b.tif") == (60, 90)
    with tifffile.TiffWriter(tmp_path / "c.tif") as writer:
        writer.write(photo[::5, ::5], photometric="rgb", subfiletype=1, subifds=1)
        writer.write(photo, photometric="rgb", subfiletype=0)
    with pytest.raises(FusionerError, match="holds only a thumbnail that can be read"):
        read_image(tmp_path / "c.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bits", [12, 14, 16])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_fewer_bits_stored_in_16_are_stretched(
    photo: np.ndarray, tmp_path: Path, bands: int, bits: int, byteorder: str, compression: str | None
) -> None:
    levels = np.dstack([photo, photo[..., :1]])[..., :bands].squeeze()
    values = (levels * ((2**bits - 1) / 255) + 0.5).astype(f"{byteorder}u2")
    layout = {"photometric": "minisblack" if bands == 1 else "rgb"} | ({"extrasamples": [0]} if bands == 4 else {})
    rgb, notes = written(tmp_path / "a.tif", values, byteorder=byteorder, compression=compression, **layout)
    expected = np.repeat(photo[..., :1], 3, axis=2) if bands == 1 else photo
    assert np.abs(rgb.astype(int) - expected).max() <= 1
    note = f"holds values of {bits} bits in 16: they are stretched to the full range"
    assert notes == [note][: bits < 16] + ["has 4 bands: only the first 3 are read, as colours"][: bands == 4]


def test_a_tiff_with_unknown_bands_is_one_sentence(tmp_path: Path) -> None:
    pages = np.zeros((5, 30, 40), np.uint8)
    with pytest.raises(FusionerError, match="is a TIFF of 5 bands, which is not supported: save three"):
        written(tmp_path / "a.tif", pages, photometric="minisblack", planarconfig="separate")
    deep = np.zeros((3, 30, 40), np.uint16)
    with pytest.raises(FusionerError, match="16-bit bands in separate planes: save it with interleaved"):
        written(tmp_path / "b.tif", deep, photometric="rgb", planarconfig="separate")


def test_a_tiff_whose_pages_form_a_loop_is_read(photo: np.ndarray) -> None:
    tiff = bytearray(encoded(Image.fromarray(photo), "TIFF"))
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    struct.pack_into("<I", tiff, start + 2 + 12 * count, start)
    assert np.array_equal(read_image(bytes(tiff)), photo)


def test_heic_and_camera_raw_are_identified_by_content(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000)
    suffixes = {suffix: format for suffix, format in Image.registered_extensions().items() if format != "HEIF"}
    monkeypatch.setattr(image, "_register_heif", lambda: None)
    monkeypatch.setattr(Image, "EXTENSION", suffixes)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    with pytest.raises(FusionerError, match=r"cannot be read \(HEIC: pip install 'fusioner\[heif\]'\)"):
        read_image(heic)
    for content in (
        encoded(Image.fromarray(photo), "TIFF", tiffinfo={50706: b"\1\4\0\0"}),
        b"FUJIFILMCCD-RAW 0201" + bytes(100),
        b"II*\0\x10\0\0\0CR\2\0" + bytes(100),
        b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(100),
    ):
        with pytest.raises(FusionerError, match="camera raw: develop it"):
            read_image(content)
    for name, kind in (("a.NEF", "camera raw"), ("a.psd", "Photoshop")):
        with pytest.raises(FusionerError, match=rf"{name} is not supported \({kind}"):
            read_image(bytes(100), name)
    for name in ("a.jpg", "b.HEIC", "c.dng", "d.nef", "e.txt"):
        (tmp_path / name).touch()
    kinds: list[str] = []
    assert [path.name for path in list_images(tmp_path, on_left_out=kinds.append)] == ["a.jpg"]
    assert kinds == [HEIF, CAMERA_RAW, CAMERA_RAW]


def image_size_of(content: bytes, path: Path) -> tuple[int, int]:
    path.write_bytes(content)
    return image_size(path)


def test_heic(photo: np.ndarray, tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6  # stored turned to the left
    pillow_heif.from_pillow(Image.fromarray(np.rot90(photo))).save(stream, quality=95, exif=exif.tobytes())
    assert close(read_image(stream.getvalue()), photo, 8.0)
    assert image_size_of(stream.getvalue(), tmp_path / "a.heic") == photo.shape[:2]
    assert ".heic" in image_suffixes()
    with pytest.raises(FusionerError, match="corrupt"):
        read_image(stream.getvalue()[:600])


def test_a_png_with_long_texts(photo: np.ndarray) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("prompt", "words " * 2**20, zip=True)
    texts.add_itxt("workflow", "words " * 2**19, zip=True)
    assert np.array_equal(read_image(encoded(Image.fromarray(photo), "PNG", pnginfo=texts)), photo)


def test_palette(photo: np.ndarray) -> None:
    palette = Image.fromarray(photo).quantize(128)
    assert np.array_equal(read_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("transparency", ["one index", "an alpha per index"])
def test_a_transparent_palette_lies_on_white(transparency: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.putpixel((1, 0), 2)
    alpha: int | bytes = 0 if transparency == "one index" else bytes([0, 255, 51])
    rgb = read_image(encoded(image, "PNG", transparency=alpha))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[1, 1].tolist() == [0, 0, 255]
    assert rgb[0, 1].tolist() == ([0, 255, 0] if alpha == 0 else [204, 255, 204])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (100, 100, 100, 255))
    image.putpixel((0, 0), (100, 100, 100, 0))
    image.putpixel((1, 0), (100, 100, 100, 51))
    rgb = read_image(encoded(image.convert(mode), "PNG"))
    assert rgb[0, :, 0].tolist() == [255, 224, 100]


def test_a_transparent_colour_of_an_opaque_png_lies_on_white() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    rgb = read_image(encoded(image, "PNG", transparency=(10, 20, 30)))
    assert rgb.tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV", "LAB", "RGBX", "La", "RGBa"])
def test_other_modes(photo: np.ndarray, mode: str) -> None:
    image = Image.fromarray(photo)
    if mode == "LAB":
        from PIL import ImageCms

        lab = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert lab is not None
        assert close(read_image(lab), photo, 4.0)
        return
    stages = {"La": "LA", "RGBa": "RGBA"}
    converted = image.convert(stages.get(mode, mode)).convert(mode)
    grey = {"1": "1", "L": "L", "La": "L"}
    expected = np.asarray(image.convert(grey[mode]).convert("RGB")) if mode in grey else photo
    assert close(read_image(converted), expected, 4.0)


def test_an_animation_counts_with_its_first_frame(photo: np.ndarray) -> None:
    frames = [Image.fromarray(np.roll(photo, shift, axis=1)) for shift in (0, 20, 40)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = np.asarray(Image.open(io.BytesIO(gif)).convert("RGB"))
    assert np.array_equal(read_image(gif), first)
    assert close(read_image(gif), photo, 12.0)
    webp = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read_image(webp), photo)
    opened = Image.open(io.BytesIO(webp))
    assert np.array_equal(read_image(opened), photo)


@pytest.mark.parametrize(
    ("array", "first"),
    [
        (np.full((2, 3), 7, np.uint8), 7),
        (np.full((2, 3, 1), 7, np.uint8), 7),
        (np.full((2, 3, 3), 7 * 257, np.uint16), 7),
        (np.full((2, 3, 3), 200, np.uint16), 1),  # by the range of the type, also where it is dark
        (np.full((2, 3, 3), 9 * 257, np.uint32), 9),
        (np.full((2, 3, 3), 9.0 * 257), 9),
        (np.linspace(1, -1, 18).reshape(2, 3, 3)[..., :1].repeat(3, 2), 255),  # other ranges: minimum to maximum
        (np.linspace(-7, 1e6, 18).reshape(2, 3, 3)[..., :1].repeat(3, 2), 0),
        (np.full((2, 3, 3), 0.2), 51),
        (np.full((2, 3, 3), 51.0, np.float32), 51),
        (np.full((2, 3), True), 255),
        (np.full((2, 3, 3), 200, np.int64), 200),
        (np.full((2, 3, 4), 0, np.uint8), 255),  # fully transparent
        (np.full((4, 6, 3), 9, np.uint8)[::2, ::2], 9),
    ],
)
def test_arrays(array: np.ndarray, first: int) -> None:
    rgb = read_image(array)
    assert rgb.shape == (2, 3, 3)
    assert rgb.dtype == np.uint8
    assert rgb[0, 0].tolist() == [first] * 3


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros((3, 8, 8)), np.zeros((0, 4, 3), np.uint8), np.array([["a"]]), np.zeros((2, 2, 3, 1))],
)
def test_arrays_of_other_shapes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(FusionerError, match="an image array"):
        read_image(array)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_tensors_are_channels_first(photo: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    tensor = tensor if dtype == torch.uint8 else (tensor.double() / 255).to(dtype).requires_grad_()
    difference = read_image(tensor).astype(int) - photo
    assert np.abs(difference).max() <= (1 if dtype == torch.bfloat16 else 0)
    assert read_image(tensor[0]).shape == photo.shape


def test_tensors_of_other_shapes_are_refused(photo: np.ndarray) -> None:
    with pytest.raises(FusionerError, match=r"shape \(H, W\), \(3, H, W\) or \(4, H, W\), not"):
        read_image(torch.from_numpy(photo.copy()))
    with pytest.raises(FusionerError, match="pass the images of a batch as a list"):
        read_image(torch.zeros(2, 3, 8, 8))
    with pytest.raises(FusionerError, match="pass the images of a batch as a list"):
        read_image(np.stack([photo, photo]))


def test_a_url_is_one_sentence() -> None:
    with pytest.raises(FusionerError, match=r"https://example\.org/cat\.jpg: download it first, images are not read"):
        read_image("https://example.org/cat.jpg")


def test_other_types_are_refused() -> None:
    with pytest.raises(FusionerError, match=r"not <class 'int'>"):
        read_image(3)  # type: ignore[arg-type]


def test_missing_empty_folder_and_text_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("I am not a picture, whatever my name says.\n" * 20)
    for name, reason in [
        ("none.jpg", "there is no image .*none.jpg"),
        ("empty.png", r"empty.png is empty \(0 bytes\)"),
        ("text.jpg", "text.jpg is corrupt or not an image"),
        ("", "is a folder, not an image"),
        ("a\0b.jpg", "cannot read image|there is no image"),
        ("x" * 300, "cannot read image|there is no image"),
        ("text.jpg/a.png", "there is no image|cannot read image"),
    ]:
        with pytest.raises(FusionerError, match=reason):
            read_image(f"{tmp_path}/{name}")
    with pytest.raises(FusionerError, match="not a regular file"):
        read_image("/dev/null")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_one_sentence(kind: str, share: float, tmp_path: Path) -> None:
    raw = encoded(Image.fromarray(data.chelsea()), kind)
    path = tmp_path / "cut"
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(FusionerError, match=f"{path} is corrupt"):
        read_image(path)


@given(st.data())
def test_flipped_bytes_never_raise_anything_else(data_: st.DataObject) -> None:
    kind = data_.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"]))
    raw = bytearray(encoded(Image.new("RGB", (9, 7), (200, 30, 60)), kind))
    for _ in range(data_.draw(st.integers(1, 6))):
        raw[data_.draw(st.integers(0, len(raw) - 1))] = data_.draw(st.integers(0, 255))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read_image(bytes(raw)).ndim == 3
    except FusionerError as error:
        assert "\n" not in str(error)  # noqa: PT017


def bomb_png(width: int, height: int) -> bytes:
    """Return a PNG of zeros, a few hundred kilobytes at any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row * 64) for _ in range(height // 64 + 1)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_png(20_000, 20_000))
    with pytest.raises(FusionerError, match=r"bomb\.png is over the limit of 178,956,970 pixels"):
        read_image(path)


def test_the_pixel_limit_applies_without_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_png(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(FusionerError, match=r"with its 20000 x 20000 pixels is over the limit"):
        read_image(path)
    with pytest.raises(FusionerError, match="over the limit"):
        read_image(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (20_000, 20_000), (0, 0)))


def test_pillows_warning_is_suppressed() -> None:
    """The size lies between Pillow's warning, an error in this suite, and our limit."""
    assert MAX_PIXELS > 10_000 * 10_000
    cut = bomb_png(10_000, 10_000)[:60]
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(io.BytesIO(cut))
    with pytest.raises(FusionerError, match="truncated"):  # the header is valid, but pixels are missing
        read_image(cut)


def test_suffixes() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".avif"} <= image_suffixes()
    assert not {".eps", ".psd", ".txt", ".json"} & image_suffixes()


def test_resize(photo: np.ndarray) -> None:
    assert np.array_equal(resize(photo, photo.shape[:2]), photo)
    small = resize(photo, (30, 20))
    tensor = torch.tensor(photo).permute(2, 0, 1)[None].float()
    expected = F.interpolate(tensor, size=(30, 20), mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    assert np.abs(small - expected).max() <= 1
