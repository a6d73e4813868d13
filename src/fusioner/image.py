"""Any picture a user may hand over -> upright RGB, 8 bits, or one sentence why not."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8
from PIL import Image, ImageCms

from fusioner.backend import Array
from fusioner.errors import FusionerError

ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | np.ndarray

MAX_PIXELS = 178_956_970  # where Pillow itself refuses to decode
# Pillow's other readers are left out: some start programs (EPS), none of them is how photographs are kept.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "ICO")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112
_WARNINGS = threading.Lock()  # Python keeps its warning filters once per process


def read_image(source: ImageSource) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a picture to upright RGB.

    EXIF (and XMP) rotation is honoured, of an animation the first frame counts, transparency is laid on white, CMYK,
    palette and Lab become RGB, and 16-bit, 32-bit and float greys are scaled to 8 bits, not clipped.

    Args:
        source: a path, the bytes of a file, an open binary file, a Pillow image, or an array of shape (H, W),
            (H, W, 3) or (H, W, 4) (uint8, uint16, bool, or floats in [0, 1]).

    Raises:
        FusionerError: missing, empty, not an image, damaged, cut short, or of more than `MAX_PIXELS` pixels, which is
            found out before any pixel is decoded.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_stream(BytesIO(source), "the image")
    if isinstance(source, str | Path):
        with _open_file(Path(source)) as file:
            return _read_stream(file, str(source))
    if hasattr(source, "read"):
        return _read_stream(_whole(source), str(getattr(source, "name", "the image")))
    raise FusionerError(f"an image is a path, bytes, an open file, a Pillow image or an array, not {type(source)}")


def decode(raw: bytes, image: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a file's bytes; FusionerError, naming the file, when there is none."""
    stream = _NamedBytes(raw)
    stream.name = str(image)
    return read_image(stream)


def image_suffixes() -> frozenset[str]:
    """The lower-case file name endings that belong to the formats read, `.jpg` among them."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO"))


def to_tensor(rgb: UInt8[np.ndarray, "h w 3"]) -> Float[Array, "3 h w"]:
    """8-bit RGB -> float32 in [0, 1], channels first."""
    from torch import from_numpy

    return from_numpy(np.require(rgb, requirements="W")).permute(2, 0, 1).float().div_(255)


def squash(rgb: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Array, "3 side side"]:
    """The whole picture at `side` by `side` pixels whatever its proportions, float32 in [0, 1]: what encoders see."""
    from torch import from_numpy

    pixels = from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)
    return resize(pixels, (side, side)).float().div_(255)


def resize(images: Num[Array, "*b c h w"], size: tuple[int, int]) -> Num[Array, "*b c h2 w2"]:
    """Bilinear with antialiasing, to `size` (height, width); floats or uint8; one image or a batch."""
    import torch.nn.functional as F

    if tuple(images.shape[-2:]) == size:
        return images
    batch = images if images.ndim == 4 else images[None]
    resized = F.interpolate(batch, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized if images.ndim == 4 else resized[0]


class _NamedBytes(BytesIO):
    name = ""


def _open_file(path: Path) -> BufferedReader:
    try:
        if path.is_dir():
            raise FusionerError(f"{path} is a folder, not an image")
        if not path.exists():
            raise FusionerError(f"there is no image {path}")
        if not path.is_file():
            raise FusionerError(f"{path} is not a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FusionerError(f"cannot read image {path}: {reason}") from error


def _whole(stream: BinaryIO) -> BytesIO:
    """All that a stream holds, from its start where it can go back there (a pipe cannot)."""
    if stream.seekable():
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise FusionerError("the image's file must be opened in binary mode ('rb')")
    return BytesIO(content)


def _read_stream(stream: BytesIO | BufferedReader, name: str) -> UInt8[np.ndarray, "h w 3"]:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        if not stream.read(1):
            raise FusionerError(f"{name} is empty (0 bytes)")
        stream.seek(0)
        with _quiet():
            image = Image.open(stream, formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_large(name, "") from error
    except FusionerError:
        raise
    except Exception as error:  # a hostile header may make a reader fail in any way
        known = ", ".join(formats)
        raise FusionerError(f"{name} is damaged or not an image (read are {known})") from error
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f" with its {image.width} x {image.height} pixels")
    if not image.width or not image.height:
        raise FusionerError(f"{name} has no pixels ({image.width} x {image.height})")
    try:
        image.load()
        orientation = _orientation(image)
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        return _to_rgb(upright)
    except MemoryError as error:
        raise FusionerError(f"there is not enough memory to decode {name}: make it smaller first") from error
    except Exception as error:  # damaged data may make a decoder fail in any way
        raise FusionerError(f"{name} is damaged or cut short: {error}") from error


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation 1..8; 1 where the camera's notes are absent or unreadable."""
    try:
        with _quiet():
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # broken notes do not make a picture unreadable
        return 1


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_eight_bits(np.asarray(image))[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == "LAB":  # Pillow converts it through a colour profile only
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return np.array(image.convert("RGB"))


def _from_array(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise FusionerError(f"an image array has the shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    if array.dtype.kind not in "buif":
        raise FusionerError(f"an image array holds numbers, not {array.dtype}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large("the image", f" with its {array.shape[1]} x {array.shape[0]} pixels")
    pixels = _eight_bits(array)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


def _eight_bits(values: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Scale by the range the type or, for wide types, the values tell: 1, 255, 65535, else their own least and most."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    numbers = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        numbers *= 1 / 257
    elif values.dtype.kind == "f" and low >= 0 and high <= 1:
        numbers *= 255
    elif low >= 0 and high <= 65535:
        numbers *= 1 if high <= 255 else 1 / 257
    else:
        numbers = (numbers - low) * (255 / (high - low or 1))
    return (numbers + 0.5).astype(np.uint8)


def _too_large(name: str, size: str) -> FusionerError:
    return FusionerError(f"{name}{size} is over the limit of {MAX_PIXELS:,} pixels: make it smaller first")


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about large sizes (we have our own limit) or odd camera notes; held for headers only, not pixels."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
