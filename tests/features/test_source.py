"""Test that cached and newly encoded tokens are the same, under the same masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusioner.data.augment import Augmentation
from fusioner.data.base import Item, SegmentationData
from fusioner.encoders.base import FrozenImageEncoder
from fusioner.errors import FusionerError
from fusioner.features.build import cache_features
from fusioner.features.dataset import LiveSource, TokenSource

SIDE, VIEWS = 32, 5


class Colours(FrozenImageEncoder):
    """An encoder whose tokens are the colours of the pixels."""

    name, dim, stride = "colours", 3, 1
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images, dim=1)

    def fingerprint(self) -> str:
        return "colours"


def single(source: TokenSource, item: Item, view: int) -> tuple[torch.Tensor, np.ndarray]:
    tokens, masks = source.batch([(item, view)])
    return tokens[0], masks[0]


def every(data: SegmentationData, views: int = VIEWS) -> list:
    return [(item, view) for item in data.items for view in range(views)]


def test_cached_tokens_equal_live_encoding_in_half_precision(data, encoder, tmp_path: Path):
    cached = cache_features(tmp_path / "cache", data, encoder, SIDE, views=VIEWS)
    live = LiveSource(data, encoder, SIDE)
    again, masks = cached.batch(every(data))
    tokens, live_masks = live.batch(every(data))
    assert again.shape == (len(every(data)), encoder.dim, SIDE // 4, SIDE // 4)
    assert again.dtype == torch.float32
    assert torch.equal(again, tokens.half().float())
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(masks, live_masks, strict=True))


def test_single_views_and_batches_agree(data, encoder, tmp_path: Path):
    for source in (cache_features(tmp_path, data, encoder, SIDE, views=3), LiveSource(data, encoder, SIDE)):
        tokens, masks = source.batch([(data.items[1], 2), (data.items[4], 0)])
        for i, (item, view) in enumerate([(data.items[1], 2), (data.items[4], 0)]):
            actual, mask = single(source, item, view)
            assert torch.equal(actual, tokens[i])
            assert np.array_equal(mask, masks[i])


@pytest.mark.parametrize("kind", ["cached", "live", "augmented"])
def test_the_mask_of_a_view_lies_on_its_tokens(data: SegmentationData, tmp_path: Path, kind: str):
    """Each class has a distinct colour, which the tokens contain."""
    augmentation = Augmentation(probability=1.0, jitter=0.1, noise=0.0, rotate=5.0)
    source: TokenSource = {
        "cached": lambda: cache_features(tmp_path, data, Colours(), 64, views=VIEWS),
        "live": lambda: LiveSource(data, Colours(), 64),
        "augmented": lambda: LiveSource(data, Colours(), 64, replace(augmentation, ignore=data.ignore)),
    }[kind]()
    moved = 0
    for item, view in every(data):
        tokens, mask = single(source, item, view)
        shown = np.asarray(Image.fromarray(mask).resize((64, 64), Image.Resampling.NEAREST))
        labelled = shown != data.ignore
        assert (tokens.argmax(dim=0).numpy() == shown)[labelled].mean() > 0.9
        original = np.asarray(Image.fromarray(data.read_mask(item)).resize((64, 64), Image.Resampling.NEAREST))
        moved += (original == shown).mean() < 0.9
    assert moved > len(data.items)  # otherwise the assertion above is trivial


def test_views_depend_on_content_not_on_file_name(data, root: Path, encoder):
    first = data.items[0]
    (root / "images" / "twin.png").write_bytes(first.image.read_bytes())
    (root / "masks" / "twin.png").write_bytes(first.mask.read_bytes())
    from fusioner.data.folder import folder

    again = folder(root)
    live = LiveSource(again, encoder, SIDE)
    (tokens, mask), (other, other_mask) = (single(live, again.by_id[name], 3) for name in (first.id, "twin"))
    assert torch.equal(tokens, other)
    assert np.array_equal(mask, other_mask)


def test_augmented_views_are_many_and_repeatable(data, encoder):
    live = LiveSource(data, encoder, SIDE, Augmentation(probability=1.0))
    drawn = [single(live, data.items[0], view)[0] for view in (1, 2, 2**31 - 2, 1)]
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_live_encoding_reports_broken_images_and_mask_sizes(data, encoder):
    live, (first, second, *_) = LiveSource(data, encoder, SIDE), data.items
    first.image.write_bytes(first.image.read_bytes()[:100])
    with pytest.raises(FusionerError, match=r"0\.png is corrupt"):
        single(live, first, 0)
    Image.new("L", (5, 7)).save(second.mask)
    with pytest.raises(FusionerError, match=r"1\.png is 5x7 pixels"):
        single(live, second, 0)
    second.image.unlink()
    with pytest.raises(FusionerError, match=r"cannot read image .*1\.png"):
        single(live, second, 0)
