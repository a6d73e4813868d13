"""Where training and evaluation get tokens from: encoded now, or read from the cache. Both give the same.

Letters: B images, D channels, Gh Gw token grid, H W pixels of a view.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.data.augment import Mask, Rgb, view, view_mask
from fusioner.data.base import Item, SegmentationData
from fusioner.encoders.base import ImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.cache import Shelf
from fusioner.features.preprocess import encode, image_digest, read_bytes, view_seed
from fusioner.image import read_image, resize_square

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
        """Tokens of several views as one float32 tensor, and their masks, each of its own size; raises as `tokens`.

        On the encoder's device where they are encoded now, on the CPU where they are read.
        """
        ...

    def place(self, item: Item) -> tuple[str, int]:
        """The file that holds an image's first view, and its row there; FusionerError where there is no file."""
        ...


class LiveSource:
    """Encodes at every call.

    Without `augment` the views are those of the cache (`transforms.view`); with it view number v is a draw of the full
    augmentation, seeded by the image's bytes and v, so there are as many as one asks for.

    Args:
        resolution: side in pixels to which the whole picture is squashed.
        augment: for example `Augmentation(PASCAL_AUGMENT, data.ignore)`.
    """

    def __init__(
        self,
        data: SegmentationData,
        encoder: ImageEncoder,
        resolution: int,
        augment: Augment | None = None,
    ) -> None:
        self.data, self.encoder, self.resolution = data, encoder, resolution
        self.augment = augment
        self.views: int | None = None

    def picture(self, item: Item, view: int) -> tuple[Float[Tensor, "3 s s"], Integer[ndarray, "h w"]]:
        """What the encoder would be shown, and the mask; raises as `tokens`. Loaders may call this in workers."""
        raw = read_bytes(item.image)
        rgb, mask, seed = read_image(raw, str(item.image)), self.data.read_mask(item), view_seed(image_digest(raw))
        check_size(item, rgb, mask)
        rgb, mask = self._moved(rgb, mask, view, seed)
        return resize_square(rgb, self.resolution), mask

    def tokens(self, item: Item, view: int) -> tuple[Float[Tensor, "d gh gw"], Integer[ndarray, "h w"]]:
        """See `TokenSource`."""
        tokens, masks = self.batch([(item, view)])
        return tokens[0], masks[0]

    def batch(self, wanted: Sequence[Wanted]) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """See `TokenSource`."""
        pictures, masks = zip(*(self.picture(item, view) for item, view in wanted), strict=True)
        return encode(self.encoder, torch.stack(pictures)), list(masks)

    def place(self, item: Item) -> tuple[str, int]:
        """See `TokenSource`."""
        raise FusionerError("features encoded at every step lie in no file: --order shards needs the cache")

    def _moved(self, rgb: Rgb, mask: Mask, number: int, seed: int) -> tuple[Rgb, Mask]:
        if self.augment is None:
            return view(rgb, mask, number, seed)
        return self.augment(rgb, mask, np.random.default_rng((seed, number)))


class CachedSource:
    """Reads the views of `features.fill.fill`; their masks are made anew, for that costs little.

    Args:
        digests: sha256 of each image's file, by image id.
        views: how many views of each image are in the cache.
        dtype: of the tokens in a batch.
    """

    def __init__(
        self,
        shelf: Shelf,
        data: SegmentationData,
        digests: Mapping[str, str],
        views: int = 1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shelf, self.data, self.digests, self.dtype = shelf, data, digests, dtype
        self.views: int | None = views

    def mask(self, item: Item, view: int) -> Integer[ndarray, "h w"]:
        """The mask of a view, at the view's own size; loaders may call this in workers."""
        return view_mask(self.data.read_mask(item), view, view_seed(self.digests[item.id]))

    def tokens(self, item: Item, view: int) -> tuple[Float[Tensor, "d gh gw"], Integer[ndarray, "h w"]]:
        """See `TokenSource`."""
        tokens, masks = self.batch([(item, view)])
        return tokens[0], masks[0]

    def batch(self, wanted: Sequence[Wanted]) -> tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "h w"]]]:
        """See `TokenSource`; every number is copied once, from the mapped file into the batch."""
        tokens = self.shelf.read([(self.digests[item.id], view) for item, view in wanted], self.dtype)
        return tokens, [self.mask(item, view) for item, view in wanted]

    def place(self, item: Item) -> tuple[str, int]:
        """See `TokenSource`."""
        found = self.shelf.place(self.digests[item.id], 0)
        if found is None:
            raise FusionerError(f"the feature cache has lost image {item.id}: run this again")
        return found


def check_size(item: Item, rgb: Rgb, mask: Mask) -> None:
    """FusionerError unless the mask has its image's size."""
    if rgb.shape[:2] != mask.shape:
        raise FusionerError(
            f"mask {item.mask} is {mask.shape[1]}x{mask.shape[0]} pixels (width x height), "
            f"its image {item.image} is {rgb.shape[1]}x{rgb.shape[0]}; they must be equal"
        )
