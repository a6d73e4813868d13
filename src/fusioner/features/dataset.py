"""Token sources of training: encoded on the fly or read from the cache, with equal results.

Letters: B images, D channels, Gh Gw token grid, H W pixels of a view.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Integer
from numpy import ndarray
from torch import Tensor

from fusioner.data.augment import Augmentation, view, view_mask
from fusioner.data.base import Item, SegmentationData, check_size
from fusioner.encoders.base import ImageEncoder
from fusioner.features.cache import FeatureCache, encode, image_digest, read_bytes, view_seed
from fusioner.image import read_image, resize_square

Batch = tuple[Float[Tensor, "b d gh gw"], list[Integer[ndarray, "_ _"]]]


class TokenSource(Protocol):
    """Tokens and masks of the views of a data set's images."""

    views: int | None  # of each image (0, 1, ... views - 1); None: unlimited

    def batch(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Return the float32 tokens of (image, view) pairs, and the mask of each view at its own size.

        The tokens are on the encoder's device if encoded now, on the CPU if read from the cache.
        """
        ...


class LiveSource:
    """Encodes at every call.

    Without `augment` the views are those of the cache (`data.augment.view`). With it view number v is a sample of the
    full augmentation, seeded by the image's bytes and v. Images are resized to `resolution` x `resolution` pixels.
    """

    def __init__(
        self,
        data: SegmentationData,
        encoder: ImageEncoder,
        resolution: int,
        augment: Augmentation | None = None,
        views: int | None = None,
    ) -> None:
        self.data, self.encoder, self.resolution, self.augment, self.views = data, encoder, resolution, augment, views

    def batch(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Return tokens and masks of views, see `TokenSource`."""
        pixels, masks = zip(*(self._load(item, view) for item, view in wanted), strict=True)
        return encode(self.encoder, torch.stack(pixels)), list(masks)

    def _load(self, item: Item, number: int) -> tuple[Float[Tensor, "3 s s"], Integer[ndarray, "h w"]]:
        raw = read_bytes(item.image)
        rgb, mask, seed = read_image(raw, str(item.image)), self.data.read_mask(item), view_seed(image_digest(raw))
        check_size(item, rgb.shape[:2], mask.shape)
        if self.augment is None:
            rgb, mask = view(rgb, number, seed), view_mask(mask, number, seed)
        else:
            rgb, mask = self.augment(rgb, mask, np.random.default_rng((seed, number)))
        return resize_square(rgb, self.resolution), mask


class CachedSource:
    """Reads tokens from a cache; masks are computed at each call. Entries lost meanwhile are encoded again.

    `digests` are the sha256 of the image files by image id.
    """

    def __init__(self, cache: FeatureCache, data: SegmentationData, digests: Mapping[str, str], views: int = 1) -> None:
        self.cache, self.data, self.digests = cache, data, digests
        self.views: int | None = views

    def batch(self, wanted: Sequence[tuple[Item, int]]) -> Batch:
        """Return tokens and masks of views, see `TokenSource`."""
        key = self.cache.key
        tokens = torch.empty((len(wanted), key.dim, *key.grid))
        for row, (item, number) in zip(tokens, wanted, strict=True):
            row.copy_(self.cache.tokens(item.image, self.digests[item.id], number))
        return tokens, [self._mask(item, number) for item, number in wanted]

    def _mask(self, item: Item, number: int) -> Integer[ndarray, "h w"]:
        return view_mask(self.data.read_mask(item), number, view_seed(self.digests[item.id]))
