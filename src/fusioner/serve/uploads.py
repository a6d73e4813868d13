"""Uploaded bytes are looked at before they are decoded, and decoded pixels share one budget."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

from PIL import Image

from fusioner.image import IMAGE_FORMATS
from fusioner.serve.errors import ApiError

SCANS = 100
"""Passes over the pixels in one JPEG; photographs have up to a dozen. A small file with thousands keeps a decoder busy
for hours."""


def check_picture(content: bytes, limit: int) -> int:
    """Pixels that the file's header announces, 0 when it cannot be read (`read_image` will say why).

    Raises:
        ApiError: 413 for more than `limit` pixels, 422 for an icon or a JPEG made to be slow.
    """
    if content.startswith(b"\0\0\1\0"):
        raise ApiError(422, "icons are not read here, they may hold more pixels than they say: send a PNG")
    Image.init()  # else only the commonest formats are known
    megapixels = f"this server's limit of {limit / 1e6:g} megapixels"
    try:
        with Image.open(BytesIO(content), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as image:
            (width, height), kind = image.size, image.format
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ApiError(413, f"the image is over {megapixels}") from error
    except Exception:
        return 0
    if width * height > limit:
        raise ApiError(413, f"the image has {width} x {height} pixels, over {megapixels}")
    if kind in ("JPEG", "MPO") and content.count(b"\xff\xda") > SCANS:
        raise ApiError(422, f"the JPEG has more than {SCANS} scans: save it anew")
    return width * height


class Budget:
    """Pixels in work at once, first come, first served."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._room, self._line = asyncio.Condition(), asyncio.Lock()

    @asynccontextmanager
    async def spend(self, pixels: int) -> AsyncIterator[None]:
        """Hold so many pixels of the budget, as soon as they are free."""
        pixels = min(pixels, self._total)
        async with self._line, self._room:  # the first in line waits for room, the others for the first
            await self._room.wait_for(lambda: self._used + pixels <= self._total)
            self._used += pixels
        try:
            yield
        finally:
            async with self._room:
                self._used -= pixels
                self._room.notify()
