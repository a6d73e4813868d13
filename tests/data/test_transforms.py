"""Test that augmentation moves image and mask together, invents no classes, and is reproducible by its seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusioner.data.augment import COCO_AUGMENT, Augmentation, identity, view, view_mask, warp

# Corners of the colour cube: no blend of two is a third one.
COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
GEOMETRY = Augmentation(probability=1.0, jitter=0.0, noise=0.0)


def scene(seed: int, height: int = 61, width: int = 94) -> tuple[np.ndarray, np.ndarray]:
    """Return a blocky random mask and a picture with one colour per class."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, len(COLOURS), size=(5, 7)).astype(np.uint8)
    mask = np.kron(small, np.ones((height // 5 + 1, width // 7 + 1), np.uint8))[:height, :width]
    return COLOURS[mask], mask


def decode(rgb: np.ndarray) -> np.ndarray:
    """Return the class at each pixel, 254 where the colour is a blend."""
    shown = np.full(rgb.shape[:2], 254)
    for i, colour in enumerate(COLOURS):
        shown[(np.abs(rgb.astype(int) - colour) <= 2).all(axis=-1)] = i
    return shown


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_masks_follow_the_augmented_image(picture: int, seed: int):
    rgb, mask = scene(picture)
    rgb2, mask2 = GEOMETRY(rgb, mask, np.random.default_rng(seed))
    assert rgb2.shape == rgb.shape
    assert mask2.shape == mask.shape
    assert mask2.dtype == mask.dtype
    shown = decode(rgb2)
    unblended = (shown != 254) & (mask2 != 255)
    assert unblended.mean() > 0.2
    # Only half-pixel ties between bilinear and nearest may differ, in the last bit of a coordinate.
    assert (shown[unblended] == mask2[unblended]).mean() > 0.999


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000), st.sampled_from([Augmentation(), COCO_AUGMENT, GEOMETRY]))
def test_no_class_is_invented(picture: int, seed: int, recipe: Augmentation):
    rgb, mask = scene(picture)
    _, mask2 = recipe(rgb, mask, np.random.default_rng(seed))
    assert set(np.unique(mask2)) <= set(np.unique(mask)) | {255}


def test_sixteen_bit_masks_keep_their_ids_and_their_own_ignore_value():
    rgb, mask = scene(1)
    mask = mask.astype(np.uint16) + 40_001
    shifted = Augmentation(
        ignore=65535, probability=1.0, jitter=0.0, noise=0.0, elastic=0.0, crop=1.0, scale=0.0, rotate=0.0, shift=0.4
    )
    _, mask2 = shifted(rgb, mask, np.random.default_rng(3))
    assert mask2.dtype == np.uint16
    assert 65535 in mask2
    assert set(np.unique(mask2)) <= set(np.unique(mask)) | {65535}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40))
def test_flipping_twice_is_the_identity_by_slicing_and_by_warping(seed: int, height: int, width: int):
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    mask = rng.integers(0, 9, (height, width)).astype(np.uint8)
    once = rgb[:, ::-1], mask[:, ::-1]
    mirrored = warp(rgb, mask, identity(height, width) * np.array([1, -1], np.float32), 255)
    for left, right in zip(once, mirrored, strict=True):
        np.testing.assert_array_equal(left, right)
    back = warp(*mirrored, identity(height, width) * np.array([1, -1], np.float32), 255)
    for returned, original in zip(back, (rgb, mask), strict=True):
        np.testing.assert_array_equal(returned, original)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    rgb, mask = scene(2)
    first, again, other = (Augmentation()(rgb, mask, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (first[0] == again[0]).all()
    assert (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


def test_each_augmentation_applies_to_half_of_the_views():
    rgb, mask = scene(4)
    untouched = moved = 0
    for seed in range(200):
        rgb2, mask2 = Augmentation()(rgb, mask, np.random.default_rng(seed))
        moved += (mask2 != mask).any()
        untouched += (rgb2 == rgb).all()
    assert moved == pytest.approx(200 * (1 - 0.5**4), abs=15)
    assert untouched < 15


def test_inputs_are_not_modified():
    rgb, mask = scene(4)
    before = rgb.copy(), mask.copy()
    Augmentation(probability=1.0)(rgb, mask, np.random.default_rng(0))
    for index in range(4):
        view(rgb, index, seed=1)
        view_mask(mask, index, seed=1)
    assert (rgb == before[0]).all()
    assert (mask == before[1]).all()


def test_a_rotated_square_stays_a_square_in_a_wide_picture():
    mask = np.zeros((80, 200), np.uint8)
    mask[20:60, 80:120] = 1
    turned = Augmentation(
        probability=1.0, jitter=0.0, noise=0.0, elastic=0.0, crop=1.0, shift=0.0, scale=0.0, rotate=45.0, flip=False
    )
    _, mask2 = turned(COLOURS[mask], mask, np.random.default_rng(0))
    assert (mask2 == 1).sum() == pytest.approx(1600, rel=0.05)
    assert (mask2 == 255).any()


def test_view_zero_is_the_image_itself_and_the_others_differ():
    rgb, _ = scene(7)
    assert view(rgb, 0, seed=9) is rgb
    pictures = [view(rgb, i, seed=9) for i in range(1, 4)]
    assert len({picture.tobytes() for picture in pictures}) == 3
    again = view(rgb, 3, seed=9)
    assert (again == pictures[2]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 500), st.integers(1, 6), st.integers(0, 500))
def test_views_keep_image_and_mask_together(picture: int, index: int, seed: int):
    _, mask = scene(picture)
    bright = np.repeat((mask * 60)[..., None], 3, axis=-1)  # the grey level encodes the class
    rgb2, mask2 = view(bright, index, seed), view_mask(mask, index, seed)
    assert rgb2.shape[:2] == mask2.shape
    assert mask2.size >= 0.44 * mask.size
    assert set(np.unique(mask2)) <= set(np.unique(mask))
    levels = [rgb2[mask2 == i].mean() for i in np.unique(mask2)]
    assert levels == sorted(levels)
    for i in np.unique(mask2):  # jitter leaves one colour per class
        assert len(np.unique(rgb2[mask2 == i], axis=0)) == 1


def test_one_pixel_images_can_be_augmented():
    rgb, mask = np.full((1, 1, 3), 77, np.uint8), np.ones((1, 1), np.uint8)
    for seed in range(20):
        assert Augmentation(probability=1.0)(rgb, mask, np.random.default_rng(seed))[1].shape == (1, 1)
        assert view_mask(mask, 3, seed).shape == (1, 1)
