"""Uploaded bytes to pixels: the size is known before any pixel is decoded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

from PIL import Image

from fusioner.inference.image import FORMATS
from fusioner.serve.problems import ApiError


def count_pixels(content: bytes, limit: int) -> int:
    """Pixels the file's header announces, 0 when it cannot be read; ApiError 413 for more than `limit`."""
    try:
        with Image.open(BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ApiError(413, f"the image is over this server's limit of {limit / 1e6:g} megapixels") from error
    except Exception:  # why it cannot be read is for `read_image` to say
        return 0
    if width * height > limit:
        size = f"{width} x {height} pixels"
        raise ApiError(413, f"the image's {size} are over this server's limit of {limit / 1e6:g} megapixels")
    return width * height


class Budget:
    """Pixels in work at once: a large image waits until there is room for it, and lets small ones wait behind it."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._room = asyncio.Condition()
        self._line = asyncio.Lock()

    @asynccontextmanager
    async def spend(self, pixels: int) -> AsyncIterator[None]:
        """Hold so many pixels of the budget."""
        pixels = min(pixels, self._total)
        async with self._line, self._room:  # one at a time waits for room, so that none is overtaken for ever
            await self._room.wait_for(lambda: self._used + pixels <= self._total)
            self._used += pixels
        try:
            yield
        finally:
            async with self._room:
                self._used -= pixels
                self._room.notify()
