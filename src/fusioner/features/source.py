"""Where training and evaluation get tokens from: encoded now, or read from the cache. Both give the same.

Letters: B images, D channels, Gh Gw token grid, H W pixels of a view.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.data.base import Item, SegmentationData
from fusioner.data.transforms import Mask, Rgb, view, view_mask
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.inference.image import read_image, squash

Augment = Callable[[Rgb, Mask, np.random.Generator], tuple[Rgb, Mask]]
Wanted = tuple[Item, int]
"""An image and the number of the view wanted of it."""


class TokenSource(Protocol):
    """Tokens and masks of the views of a data set's images.

    Attributes:
        views: how many views each image has (0, 1, ... views - 1); None: any number.
    """

    views: int | None

    def tokens(self, item: Item, view: int) -> tuple[Float[Tensor, "d gh gw"], Integer[ndarray, "h w"]]:
        """Unit-length tokens of one view, and the mask of that view at the view's own size.

        Raises:
            FusionerError: an unreadable image or mask, or a view that is not there.
        """
        ...

    def batch(self, wanted: Sequence[Wanted]) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """Tokens of several views as one float32 tensor, and their masks, each of its own size; raises as `tokens`."""
        ...


class LiveSource:
    """Encodes at every call.

    Without `augment` the views are those of the cache (`transforms.view`); with it view number v is a draw of the full
    augmentation, seeded by the image's bytes and v, so there are as many as one asks for.

    Args:
        resolution: side in pixels to which the whole picture is squashed.
        augment: for example `Augmentation(PASCAL_RECIPE, data.ignore)`.
        device: where the encoder lives; tokens stay there.
    """

    def __init__(
        self,
        data: SegmentationData,
        encoder: ImageEncoder,
        resolution: int,
        augment: Augment | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.data, self.encoder, self.resolution = data, encoder, resolution
        self.augment, self.device = augment, torch.device(device)
        self.views: int | None = None

    def picture(self, item: Item, view: int) -> tuple[Float[Tensor, "3 s s"], Integer[ndarray, "h w"]]:
        """What the encoder would be shown, and the mask; raises as `tokens`. Loaders may call this in workers."""
        raw = read_bytes(item)
        rgb, mask, seed = read_image(raw), self.data.read_mask(item), view_seed(image_digest(raw))
        check_size(item, rgb, mask)
        rgb, mask = self._moved(rgb, mask, view, seed)
        return squash(rgb, self.resolution), mask

    def tokens(self, item: Item, view: int) -> tuple[Float[Tensor, "d gh gw"], Integer[ndarray, "h w"]]:
        """See `TokenSource`."""
        tokens, masks = self.batch([(item, view)])
        return tokens[0], masks[0]

    @torch.no_grad()
    def batch(self, wanted: Sequence[Wanted]) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """See `TokenSource`."""
        pictures, masks = zip(*(self.picture(item, view) for item, view in wanted), strict=True)
        return self.encoder(torch.stack(pictures).to(self.device)).float(), list(masks)

    def _moved(self, rgb: Rgb, mask: Mask, number: int, seed: int) -> tuple[Rgb, Mask]:
        if self.augment is None:
            return view(rgb, mask, number, seed)
        return self.augment(rgb, mask, np.random.default_rng((seed, number)))


class TokenStore(Protocol):
    """What `CachedSource` reads from; `features.cache.Shelf` is one."""

    views: int

    def get(self, digest: str, view: int) -> Tensor | None:
        """Stored tokens (D, Gh, Gw) in half precision, None where there are none."""
        ...


class CachedSource:
    """Reads tokens from a store; the masks of the views are made anew, for they cost little."""

    def __init__(self, store: TokenStore, data: SegmentationData, digests: dict[str, str], views: int = 1) -> None:
        self.store, self.data, self.digests = store, data, digests
        self.views: int | None = views

    def mask(self, item: Item, view: int) -> Integer[ndarray, "h w"]:
        """The mask of a view, at the view's own size."""
        return view_mask(self.data.read_mask(item), view, view_seed(self.digests[item.id]))

    def tokens(self, item: Item, view: int) -> tuple[Float[Tensor, "d gh gw"], Integer[ndarray, "h w"]]:
        """See `TokenSource`; half precision, as stored."""
        found = self.store.get(self.digests[item.id], view)
        if found is None:
            raise FusionerError(f"the feature cache has no view {view} of {item.image}")
        return found, self.mask(item, view)

    def batch(self, wanted: Sequence[Wanted]) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """See `TokenSource`."""
        found, masks = zip(*(self.tokens(item, view) for item, view in wanted), strict=True)
        return torch.stack(found).float(), list(masks)


def read_bytes(item: Item) -> bytes:
    """The file of an image as it is; FusionerError when it cannot be read."""
    try:
        return item.image.read_bytes()
    except OSError as error:
        raise FusionerError(f"cannot read image {item.image}: {error.strerror or error}") from error


def image_digest(raw: bytes) -> str:
    """Sha256 (hex) of an image file's bytes: the image's name in the cache."""
    return hashlib.sha256(raw).hexdigest()


def view_seed(digest: str) -> int:
    """The seed of an image's views: its content alone, so that the same picture has the same views everywhere."""
    return int(digest[:15], 16)


def check_size(item: Item, rgb: Rgb, mask: Mask) -> None:
    """FusionerError unless the mask has its image's size."""
    if rgb.shape[:2] != mask.shape:
        raise FusionerError(
            f"mask {item.mask} is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), "
            f"its image {item.image} is {rgb.shape[1]}x{rgb.shape[0]}; they must be equal"
        )
