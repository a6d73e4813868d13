"""Read any image as upright 8-bit RGB, resize images, and list the images of a folder."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8
from PIL import Image, ImageCms

from fusioner.errors import FusionerError

Array: TypeAlias = Any  # torch tensors; torch is imported on use
ImageSource: TypeAlias = str | Path | bytes | BinaryIO | Image.Image | np.ndarray

MAX_PIXELS = 178_956_970  # Pillow's own limit
# Pillow's other readers are excluded: some start external programs (EPS), none is a photo format.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "ICO")
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


def read_image(source: ImageSource, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to upright RGB.

    EXIF and XMP orientation is applied, the first frame of an animation is used, transparency is composited on white,
    CMYK, palette and Lab images are converted, and 16-bit, 32-bit and float greys are scaled (not clipped) to 8 bits.

    Args:
        source: a path, the bytes of a file, an open binary file, a Pillow image, or an array of shape (H, W),
            (H, W, 3) or (H, W, 4) (uint8, uint16, bool, or floats in [0, 1]).
        name: how error messages call the image; by default its path or "the image".

    Raises:
        FusionerError: the image is missing, empty, corrupt, truncated, not an image, or has more than `MAX_PIXELS`
            pixels (checked before decoding).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _decode(source, name or "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_stream(BytesIO(source), name or "the image")
    if isinstance(source, str | Path):
        with _open_file(Path(source)) as file:
            return _read_stream(file, name or str(source))
    if hasattr(source, "read"):
        return _read_stream(_read_all(source), name or str(getattr(source, "name", "the image")))
    raise FusionerError(f"an image must be a path, bytes, an open file, a Pillow image or an array, not {type(source)}")


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of an image file as `read_image` decodes it, without decoding where possible."""
    with _open_file(path) as file:
        image = _identify(file, str(path))
        width, height = image.size
        return (width, height) if _orientation(image) >= 5 else (height, width)


def image_suffixes() -> frozenset[str]:
    """Return the lower-case file suffixes of the supported formats, such as ".jpg"."""
    extensions = Image.registered_extensions()
    return frozenset(suffix for suffix, format in extensions.items() if format in (*IMAGE_FORMATS, "MPO"))


def list_images(
    folder: Path,
    exclude: Path | None = None,
    recursive: bool = True,
    on_error: Callable[[FusionerError], None] | None = None,
) -> Iterator[Path]:
    """Yield the images of a folder in a fixed order, holding the names of one folder at a time in memory.

    Hidden files and folders, `exclude` and links to folders are skipped.

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
            if path.suffix.lower() in suffixes and path.name[0] != "." and path.is_file():
                yield path
        if not recursive:
            break


def resize_square(rgb: UInt8[np.ndarray, "h w 3"], side: int) -> Float[Array, "3 side side"]:
    """Resize to `side` x `side` pixels, ignoring the aspect ratio: float32 in [0, 1], channels first."""
    from torch import from_numpy

    pixels = from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1)
    return resize(pixels, (side, side)).float().div_(255)


def resize(images: Num[Array, "*b c h w"], size: tuple[int, int]) -> Num[Array, "*b c h2 w2"]:
    """Resize one image or a batch (floats or uint8) to `size` (height, width), bilinear with antialiasing."""
    import torch.nn.functional as F

    if tuple(images.shape[-2:]) == size:
        return images
    batch = images if images.ndim == 4 else images[None]
    resized = F.interpolate(batch, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized if images.ndim == 4 else resized[0]


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


def _read_all(stream: BinaryIO) -> BytesIO:
    """Read a stream, from its beginning if it can seek (a pipe cannot)."""
    if stream.seekable():
        stream.seek(0)
    content = stream.read()
    if not isinstance(content, bytes):
        raise FusionerError("the image file must be opened in binary mode ('rb')")
    return BytesIO(content)


def _read_stream(stream: BytesIO | BufferedReader, name: str) -> UInt8[np.ndarray, "h w 3"]:
    return _decode(_identify(stream, name), name)


def _identify(stream: BytesIO | BufferedReader, name: str) -> Image.Image:
    Image.init()
    formats = [format for format in IMAGE_FORMATS if format in Image.OPEN]
    try:
        if not stream.read(1):
            raise FusionerError(f"{name} is empty (0 bytes)")
        stream.seek(0)
        with _no_warnings():
            return Image.open(stream, formats=formats)
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except FusionerError:
        raise
    except Exception as error:  # a malicious header can make a reader fail in any way
        supported = ", ".join(formats)
        raise FusionerError(f"{name} is corrupt or not an image (supported: {supported})") from error


def _decode(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{name} with its {image.width} x {image.height} pixels")
    if not image.width or not image.height:
        raise FusionerError(f"{name} has no pixels ({image.width} x {image.height})")
    try:
        image.load()
        orientation = _orientation(image)
        return _to_rgb(image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image)
    except MemoryError as error:
        raise FusionerError(f"there is not enough memory to decode {name}: make it smaller first") from error
    except Exception as error:  # corrupt data can make a decoder fail in any way
        raise FusionerError(f"{name} is corrupt or truncated: {error}") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF or XMP orientation 1..8, or 1 if the metadata are absent or unreadable."""
    try:
        with _no_warnings():
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_to_uint8(np.asarray(image))[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode == "LAB":  # Pillow converts Lab only through a colour profile
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    return np.array(image.convert("RGB"))


def _from_array(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)) or not array.size:
        raise FusionerError(f"an image array must have shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}")
    if array.dtype.kind not in "buif":
        raise FusionerError(f"an image array must hold numbers, not {array.dtype}")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise _too_large(f"the image with its {array.shape[1]} x {array.shape[0]} pixels")
    pixels = _to_uint8(array)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)))


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


def _too_large(subject: str) -> FusionerError:
    return FusionerError(f"{subject} is over the limit of {MAX_PIXELS:,} pixels: make it smaller first")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Suppress warnings about large sizes and odd metadata; used around headers only, not around decoding."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
