"""Encoded images kept in memory under names that nobody can guess."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass

from fusioner.encoded_image import EncodedImage
from fusioner.serve.errors import ApiError


@dataclass(frozen=True, eq=False)
class Kept:
    """An encoded image and the file name it came with."""

    encoded: EncodedImage
    name: str


class Store:
    """Kept images, those unused for longest dropped first once they weigh more than `budget` bytes together."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    def add(self, kept: Kept) -> str:
        """Keep an image -> its id; ApiError 413 when it alone is over the budget."""
        cost = kept.encoded.nbytes
        if cost > self.budget:
            raise ApiError(
                413,
                f"the encoded image takes {cost / 1e6:.0f} MB and this server keeps {self.budget / 1e6:.0f} MB: send a "
                "smaller one, or with resolution fast",
            )
        name = secrets.token_urlsafe(16)
        self._kept[name] = kept
        self.bytes += cost
        while self.bytes > self.budget:
            self.remove(next(iter(self._kept)))
        return name

    def get(self, name: str) -> Kept:
        """The image of an id, now the most recently used; ApiError 404 when there is none."""
        if name not in self._kept:
            raise ApiError(404, "there is no image of this id (it may have made room for others): upload it again")
        self._kept.move_to_end(name)
        return self._kept[name]

    def remove(self, name: str) -> None:
        """Forget an image; ApiError 404 when there is none."""
        self.bytes -= self.get(name).encoded.nbytes
        del self._kept[name]
