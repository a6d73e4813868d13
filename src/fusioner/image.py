"""Read any image as upright 8-bit sRGB, resize images, and list the images of a folder."""

import os
import struct
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageCms, PngImagePlugin

from fusioner.errors import FusionerError
from fusioner.io import find_path

if TYPE_CHECKING:
    import torch

ImageSource: TypeAlias = "str | Path | bytes | BinaryIO | Image.Image | np.ndarray | torch.Tensor"

MAX_PIXELS = 178_956_970  # Pillow's own limit
# Pillow's other readers are excluded: some start external programs (EPS), none is a photo format.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "ICO", "HEIF")
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # Pillow calls PNGs with more than 1 MB of text corrupt
HEIF = "HEIC: pip install 'fusioner[heif]'"
CAMERA_RAW = "camera raw: develop it to JPEG, PNG or TIFF first"
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".srw", ".x3f"),
)
_UNREAD_SUFFIXES = {
    **dict.fromkeys(_HEIF_SUFFIXES, HEIF),
    **dict.fromkeys(_RAW_SUFFIXES, CAMERA_RAW),
    ".jxl": "JPEG XL",
    ".psd": "Photoshop",
    ".svg": "SVG",
    ".exr": "OpenEXR",
    ".jxr": "JPEG XR",
}
_ANIMATIONS = ("GIF", "WEBP", "PNG", "AVIF")  # other files of several images hold pages, thumbnails or depth maps
_RAW_STARTS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_SUBFILE_TYPE, _BITS, _BANDS, _PLANAR, _EXTRA_SAMPLES, _DNG_VERSION = 254, 258, 277, 284, 338, 50706  # TIFF tags
_MAX_PAGES, _MAX_TAGS = 1000, 1000  # of a TIFF and of its page, read at most
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_WARNINGS_LOCK = threading.Lock()  # warning filters are global to the process


def read_image(
    source: ImageSource, name: str | None = None, on_note: Callable[[str], None] = lambda note: None
) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to upright sRGB.

    EXIF and XMP orientation and ICC profiles are applied, the first frame of an animation is used, transparency is
    composited on white, CMYK, palette and Lab images are converted, and 16-bit, 32-bit and float images are scaled (not
    clipped) to 8 bits.

    Args:
        source: a path, the bytes of a file, an open binary file, a Pillow image, or an array of shape (H, W),
            (H, W, 3) or (H, W, 4) (uint8, uint16, bool, or floats in [0, 1]), or a torch tensor of the same types and
            shape (H, W), (3, H, W) or (4, H, W), on any device.
        name: how error messages call the image; by default its path or "the image".
        on_note: called with a sentence for each part of the file that is not used (pages, bands) or was stretched.

    Raises:
        FusionerError: the image is missing, empty, corrupt, truncated, not an image, or has more than `MAX_PIXELS`
            pixels (checked before decoding).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if type(source).__module__ == "torch":  # isinstance would import it
        return _from_tensor(source)
    if isinstance(source, Image.Image):
        return _decode(source, name or "the image", on_note)
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_stream(BytesIO(source), name or "the image", on_note)
    if isinstance(source, str | Path):
        with _open_file(Path(source)) as file:
            return _read_stream(file, name or str(source), on_note)
    if hasattr(source, "read"):
        return _read_stream(
            _read_all(cast(BinaryIO, source)), name or str(getattr(source, "name", "the image")), on_note
        )
    raise FusionerError(
        f"an image must be a path, bytes, an open file, a Pillow image, an array or a tensor, not {type(source)}"
    )


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file as `read_image` decodes it, without decoding where possible."""
    with _open_file(path) as file:
        image = _identify(file, str(path))
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def is_turned(path: Path) -> bool:
    """Return whether the EXIF or XMP orientation of an image file turns or flips its stored pixels."""
    with _open_file(path) as file:
        return _orientation(_identify(file, str(path))) in _TRANSPOSE


def image_suffixes() -> frozenset[str]:
    """Return the lower-case file suffixes of the supported formats, such as ".jpg"."""
    _register_heif()
    extensions = Image.registered_extensions()
    return frozenset(suffix for suffix, format in extensions.items() if format in (*IMAGE_FORMATS, "MPO"))


def list_images(
    folder: Path,
    exclude: Path | None = None,
    recursive: bool = True,
    on_error: Callable[[FusionerError], None] | None = None,
    on_left_out: Callable[[str], None] = lambda kind: None,
) -> Iterator[Path]:
    """Yield the images of a folder in a fixed order, holding the names of one folder at a time in memory.

    Hidden files and folders, `exclude` and links to folders are skipped. `on_left_out` is called with the kind of each
    picture of an unsupported format.

    Raises:
        FusionerError: a folder cannot be read and there is no `on_error` to pass the error to.
    """

    def report(error: OSError) -> None:
        failure = FusionerError(f"cannot read folder {error.filename}: {error.strerror or error}")
        if on_error is None:
            raise failure
        on_error(failure)

    suffixes, excluded = image_suffixes(), exclude and os.path.realpath(exclude)
    for root, folders, files in os.walk(folder, onerror=report):
        parent = Path(root)
        folders[:] = sorted(name for name in folders if name[0] != "." and os.path.realpath(parent / name) != excluded)
        for path in (parent / name for name in sorted(files)):
            suffix = path.suffix.lower()
            if path.name[0] == "." or not path.is_file():
                continue
            if suffix in suffixes:
                yield path
            elif kind := unsupported_kind(path.name):
                on_left_out(kind)
        if not recursive:
            break


def unsupported_kind(name: str) -> str | None:
    """Return the kind of a picture file that is not read, by its name's suffix, and the cure if there is one."""
    suffix = os.path.splitext(name)[1].lower()
    return None if suffix in image_suffixes() else _UNREAD_SUFFIXES.get(suffix)


def left_out_error(where: object, kinds: Counter[str]) -> FusionerError:
    """Return the error for pictures of unsupported formats: kind -> number."""
    text = "; ".join(f"{number} {kind}" for kind, number in kinds.items())
    return FusionerError(f"{where} holds pictures that are not supported and left out: {text}")


def resize(rgb: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resize an image to `size` (height, width), bilinear with antialiasing."""
    height, width = size
    return np.array(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def resize_square(rgb: UInt8[np.ndarray, "h w 3"], side: int) -> "Float[torch.Tensor, '3 side side']":
    """Resize to `side` x `side` pixels, ignoring the aspect ratio: float32 in [0, 1], channels first."""
    from torch import from_numpy

    return from_numpy(resize(rgb, (side, side))).permute(2, 0, 1).float().div_(255)


def _open_file(path: Path) -> BufferedReader:
    try:
        if path.is_dir():
            raise FusionerError(f"{path} is a folder, not an image")
        found = path if path.exists() else find_path(path)
        if found is None:
            if ":/" in str(path):
                address = str(path).replace(":/", "://", 1)  # Path drops a slash
                raise FusionerError(f"there is no image {address}: download it first, images are not read from URLs")
            raise FusionerError(f"there is no image {path}")
        if not found.is_file():
            raise FusionerError(f"{path} is not a regular file")
        return found.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FusionerError(f"cannot read image {path}: {reason}") from error


def _read_all(stream: BinaryIO) -> BytesIO:
    """Read a stream, from its beginning if it can seek (a pipe cannot)."""
    if stream.seekable():
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise FusionerError("the image file must be opened in binary mode ('rb')")
    return BytesIO(content)


def _read_stream(
    stream: BytesIO | BufferedReader, name: str, on_note: Callable[[str], None]
) -> UInt8[np.ndarray, "h w 3"]:
    return _decode(_identify(stream, name, on_note), name, on_note, stream)


def _identify(
    stream: BytesIO | BufferedReader, name: str, on_note: Callable[[str], None] = lambda note: None
) -> Image.Image:
    """Open an image, at the first full-size page of a TIFF file."""
    _register_heif()
    Image.init()
    formats = [format for format in IMAGE_FORMATS if format in Image.OPEN]
    pages: list[dict[int, int]] = []
    head = b""
    try:
        head = stream.read(16)
        if not head:
            raise FusionerError(f"{name} is empty (0 bytes)")
        if head.startswith(_RAW_STARTS) or head[4:12] == b"ftypcrx " or head[8:10] == b"CR":
            raise FusionerError(f"{name} is not supported ({CAMERA_RAW})")
        with _no_warnings():
            if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                pages = _tiff_pages(stream, head)
            page = _full_size_page(pages, name, on_note)
            stream.seek(0)
            image = Image.open(stream, formats=formats)
            if page:
                image.seek(page)
            return image
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except FusionerError:
        raise
    except Exception as error:  # a malicious header can make a reader fail in any way
        if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
            hint = "it is a corrupt HEIC" if "HEIF" in formats else HEIF
            raise FusionerError(f"{name} cannot be read ({hint})") from error
        if pages and pages[0].get(_BANDS, 1) != 1:
            layout = f"{pages[0][_BANDS]} bands"
            raise FusionerError(f"{name} is a TIFF of {layout}, which is not supported: save three as RGB") from error
        if kind := unsupported_kind(name):
            raise FusionerError(f"{name} is not supported ({kind})") from error
        supported = ", ".join(formats)
        raise FusionerError(f"{name} is corrupt or not an image (supported: {supported})") from error


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC if the optional package is installed."""
    try:
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    register_heif_opener()


def _tiff_pages(stream: BytesIO | BufferedReader, head: bytes) -> list[dict[int, int]]:
    """Return the single-valued integer tags of the pages, thumbnails included; of other tags the value is undefined."""
    order, big = "<" if head[:2] == b"II" else ">", b"+" in head[:4]  # BigTIFF
    entry, pointer = struct.Struct(order + ("HHQ8s" if big else "HHI4s")), struct.Struct(order + ("Q" if big else "I"))
    number = struct.Struct(order + ("Q" if big else "H"))
    (offset,) = pointer.unpack_from(head, 8 if big else 4)
    pages: dict[int, dict[int, int]] = {}  # by offset, as a damaged file may have a loop
    while offset and offset not in pages and len(pages) < _MAX_PAGES:
        stream.seek(offset)
        (count,) = number.unpack(stream.read(number.size))
        entries = stream.read(min(count, _MAX_TAGS) * entry.size)
        pages[offset] = {
            tag: struct.unpack_from(order + ("H" if kind == 3 else "I"), value)[0]
            for tag, kind, _, value in entry.iter_unpack(entries)
        }
        stream.seek(offset + number.size + count * entry.size)
        (offset,) = pointer.unpack(stream.read(pointer.size))
    return list(pages.values())


def _full_size_page(pages: list[dict[int, int]], name: str, on_note: Callable[[str], None]) -> int:
    """Return the number of the first page that is neither a thumbnail nor a transparency mask."""
    full_size = [number for number, page in enumerate(pages) if not page.get(_SUBFILE_TYPE, 0) & 0b101]
    if any(_DNG_VERSION in page for page in pages) or (pages and not full_size):
        raise FusionerError(f"{name} holds only a thumbnail that can be read ({CAMERA_RAW})")
    if len(full_size) > 1:
        on_note(f"{name} has {len(full_size)} pages: only the first is read")
    return full_size[0] if full_size else 0


def _decode(
    image: Image.Image, name: str, on_note: Callable[[str], None], stream: BytesIO | BufferedReader | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{name} with its {image.width} x {image.height} pixels")
    if not image.width or not image.height:
        raise FusionerError(f"{name} has no pixels ({image.width} x {image.height})")
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})

    def note(text: str) -> None:
        on_note(f"{name} {text}")

    try:
        if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (1,))) > 8:  # Pillow misreads them
            raise FusionerError(f"{name} is a TIFF of 16-bit bands in separate planes: save it with interleaved bands")
        rawmodes = [_rawmode(tile) for tile in getattr(image, "tile", [])]
        image.load()
        if _is_animated(image):
            note("is animated: only the first frame is read")
        orientation = _orientation(image)
        if stream and image.mode in ("RGB", "RGBA") and any(";16" in rawmode for rawmode in rawmodes):
            image = _stretch_colours(image, stream, note)
        if tags:
            image = _drop_bands(image, tags, note)
        return _to_rgb(image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image, note)
    except FusionerError:
        raise
    except MemoryError as error:
        raise FusionerError(f"there is not enough memory to decode {name}: make it smaller first") from error
    except Exception as error:  # corrupt data can make a decoder fail in any way
        raise FusionerError(f"{name} is corrupt or truncated: {error}") from error


def _rawmode(tile: Any) -> str:
    return tile.args if isinstance(tile.args, str) else str((tile.args or [""])[0])


def _stretch_colours(image: Image.Image, stream: BytesIO | BufferedReader, note: Callable[[str], None]) -> Image.Image:
    """Scale 16-bit colours of up to 14 bits, of which Pillow decoded the high byte, by their range."""
    high = np.array(image)
    if high[..., :3].max() >= 2**6:
        return image
    stream.seek(0)
    low = Image.open(stream)
    low.seek(image.tell())
    swap = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    tiles: list[Any] = []
    for tile in vars(low)["tile"]:  # with the bytes swapped, Pillow decodes the low byte
        rawmode = _rawmode(tile)[:-1] + swap[_rawmode(tile)[-1]]
        tiles.append(tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:])))
    vars(low)["tile"] = tiles
    low.load()
    high[..., :3] = _stretch(high[..., :3].astype(np.uint16) * 256 + np.asarray(low)[..., :3], note)
    stretched = Image.fromarray(high)
    stretched.info = image.info
    return stretched


def _drop_bands(image: Image.Image, tags: Mapping[int, Any], note: Callable[[str], None]) -> Image.Image:
    """Drop bands of a TIFF that are no colours; alpha must be marked as such and be opaque or clear in most places.

    Tools mark any fourth band (near infrared) as alpha.
    """
    bands, colours = tags.get(_BANDS, 1), {"L": 1, "LA": 1, "RGBA": 3}.get(image.mode, len(image.getbands()))
    if image.mode in ("LA", "RGBA"):
        alpha = image.getchannel("A").histogram()
        if _EXTRA_SAMPLES in tags and 2 * (alpha[0] + alpha[255]) >= sum(alpha):
            colours += 1
        else:
            image = image.convert(image.mode[:-1])
    if bands > colours:
        note(f"has {bands} bands: only the first {colours} are read, as colours")
    return image


def _is_animated(image: Image.Image) -> bool:
    """Return whether a picture has further frames, as far as they can be read."""
    with suppress(Exception):  # corrupt frames can fail in any way; the first one is intact
        return image.format in _ANIMATIONS and bool(getattr(image, "is_animated", False))
    return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF or XMP orientation 1..8, or 1 if the metadata are absent or unreadable."""
    try:
        with _no_warnings():
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image, note: Callable[[str], None] = lambda text: None) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _stretch(values, note) if values.dtype.itemsize == 2 else _to_uint8(values)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    image = _to_srgb(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert from the embedded colour profile; one that is broken or of another colour model is ignored."""
    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":  # Pillow converts Lab only through a colour profile
        return ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), srgb, outputMode="RGB") or image
    content = image.info.get("icc_profile")
    if not content:
        return image
    image = image.convert("RGB") if image.mode == "P" else image
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, srgb, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError):
        return image


def _from_array(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise FusionerError(
            f"an image array must have shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}{_batch_hint(array)}"
        )
    if array.dtype.kind not in "buif":
        raise FusionerError(f"an image array must hold numbers, not {array.dtype}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large(f"the image with its {array.shape[1]} x {array.shape[0]} pixels")
    pixels = _to_uint8(array)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _batch_hint(array: Any) -> str:
    return ": pass the images of a batch as a list" if array.ndim == 4 else ""


def _from_tensor(tensor: Any) -> UInt8[np.ndarray, "h w 3"]:
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise FusionerError(
            f"an image tensor must have shape (H, W), (3, H, W) or (4, H, W), not {tuple(tensor.shape)}"
            + _batch_hint(tensor)
        )
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)  # NumPy has no bfloat16
    return _from_array(array if array.ndim == 2 else array.transpose(1, 2, 0))


def _to_uint8(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Scale by the range of the type, or for wide types of the values: 1, 255, 65535, else minimum to maximum."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    floats = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(floats.min()), float(floats.max())
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        floats *= 1 / 257
    elif values.dtype.kind == "f" and low >= 0 and high <= 1:
        floats *= 255
    elif low >= 0 and high <= 65535:
        floats *= 1 if high <= 255 else 1 / 257
    else:
        floats = (floats - low) * (255 / (high - low or 1))
    return (floats + 0.5).astype(np.uint8)


def _stretch(values: Shaped[np.ndarray, "..."], note: Callable[[str], None]) -> UInt8[np.ndarray, "..."]:
    """Scale 16-bit values by the smallest usual range that holds them: 8, 10, 12, 14 or 16 bits."""
    highest = int(values.max())
    bits = next((bits for bits in (8, 10, 12, 14) if highest < 2**bits), 16)
    if bits < 16:
        note(f"holds values of {bits} bits in 16: they are stretched to the full range")
    return (values * np.float32(255 / (2**bits - 1)) + np.float32(0.5)).astype(np.uint8)


def _too_large(subject: str) -> FusionerError:
    return FusionerError(f"{subject} is over the limit of {MAX_PIXELS:,} pixels: make it smaller first")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppress warnings about large sizes and odd metadata; used around headers only, not around decoding."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
