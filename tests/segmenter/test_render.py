"""Test colours and positions of the overlay at any size and with any names."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from fusioner.segmentation import Segmentation
from fusioner.visualization import (
    MIN_SIDE,
    PAPER,
    LegendEntry,
    colour,
    colours,
    draw_legend,
    draw_masks,
    format_coverage,
)

# Colour blindness in linear RGB: Machado, Oliveira, Fernandes 2009, severity 1.
VISION_TYPES = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deuteranopia": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9690)),
    "tritanopia": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
}
CONES = np.array(((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300)))
OPPONENTS = np.array(((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087)))


def oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(np.clip(linear, 0, None) @ CONES.T) @ OPPONENTS.T


def seen(count: int, vision: str) -> np.ndarray:
    srgb = np.array(colours(count + 1)[1:]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return oklab(np.clip(linear @ np.array(VISION_TYPES[vision]).T, 0, 1))


@pytest.mark.parametrize("vision", VISION_TYPES)
def test_the_first_ten_colours_are_distinct_under_colour_blindness(vision: str) -> None:
    points = seen(10, vision)
    least = min(np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2))
    assert least > 0.095  # the well-known palette of Okabe and Ito has 0.094 with seven colours


def test_later_colours_differ_from_their_neighbours() -> None:
    points = seen(300, "normal")
    assert min(np.linalg.norm(points[1:] - points[:-1], axis=1)) > 0.1
    assert points[:, 0].min() > 0.45  # never near black, the background
    assert len(set(colours(301))) == 301


def test_colours_are_fixed() -> None:
    assert colour(0) == (0, 0, 0)
    assert colour(1) == (15, 79, 238)
    assert colours(40)[:20] == colours(20)


def by_mask(image: np.ndarray, masks: dict[str, np.ndarray]) -> Segmentation:
    logits = torch.from_numpy(np.stack([np.where(mask, 6.0, -6.0) for mask in masks.values()]).astype(np.float32))
    return Segmentation.from_logits(image, list(masks), logits.numpy())


def test_colours_lie_where_the_labels_are() -> None:
    image = np.full((400, 600, 3), 100, np.uint8)
    left, right = np.zeros((400, 600), bool), np.zeros((400, 600), bool)
    left[:, :200], right[:, 400:] = True, True
    painted = np.asarray(by_mask(image, {"one": left, "two": right}).overlay(opacity=0.5, legend=False))
    assert painted.shape == image.shape
    assert np.abs(painted[200, 100].astype(int) - (100 + np.array(colour(1))) / 2).max() <= 1
    assert np.abs(painted[200, 500].astype(int) - (100 + np.array(colour(2))) / 2).max() <= 1
    assert painted[200, 300].tolist() == [82, 82, 82]
    assert painted[200, 199].tolist() == list(colour(1))  # the line is solid
    assert painted[200, 200].max() < 60  # and its rim dark
    assert (painted[200, 195] != colour(1)).any()  # and thin


def test_an_overlay_without_labels_is_the_photograph() -> None:
    image = data.astronaut()
    nothing = by_mask(image, {"dog": np.zeros(image.shape[:2], bool)})
    assert np.array_equal(np.asarray(nothing.overlay(legend=False)), image)
    everything = np.asarray(by_mask(image, {"all": np.ones(image.shape[:2], bool)}).overlay(legend=False))
    assert np.abs(everything - (image + 0.45 * (np.array(colour(1)) - image.astype(float)))).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (24, 32), (1, 500), (500, 1), (3000, 200), (1300, 2600)])
def test_any_size(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    picture = Segmentation.from_logits(image, ["cat", "dog"], torch.randn(2, 8, 8).numpy()).overlay()
    assert picture.width >= MIN_SIDE
    plain = Segmentation.from_logits(image, ["cat"], torch.randn(1, 8, 8).numpy()).overlay(legend=False)
    factor = max(1, -(-MIN_SIDE // max(shape)))  # only small images change their size
    assert plain.size == (shape[1] * factor, shape[0] * factor)


def test_the_legend_lists_labels_by_size_in_their_colours() -> None:
    image = data.astronaut()
    masks = {name: np.zeros(image.shape[:2], bool) for name in ("small", "large", "none")}
    masks["small"][:50, :50], masks["large"][100:] = True, True
    page = np.asarray(by_mask(image, masks).overlay())
    strip = page[512:]
    places = [np.argwhere((strip == colour(number)).all(-1)) for number in (1, 2, 3)]
    assert places[1][:, 1].min() < places[0][:, 1].min() < places[2][:, 1].min()  # large, small, none
    assert len(places[2]) < len(places[0]) / 2  # not found: a hollow chip
    assert (strip == PAPER).all(-1).mean() > 0.8


def test_legend_of_five_hundred_labels_ends_with_a_count() -> None:
    entries = [LegendEntry(number, f"thing {number}", 0.002) for number in range(1, 501)]
    strip = draw_legend(entries, 512, max_height=200)
    assert strip.width == 512
    assert strip.height <= 220


def test_a_long_list_of_absent_labels_takes_two_rows() -> None:
    found = [LegendEntry(number, f"thing {number}", 0.2) for number in range(1, 40)]
    missing = [LegendEntry(number, f"thing {number}", 0.0) for number in range(41, 80)]
    rows = [(draw_legend(part, 512, max_height=400).height - 12) // 21 for part in (found, missing, [*found, *missing])]
    assert rows[0] > 5
    assert rows[1] == 2
    assert rows[0] < rows[2] <= rows[0] + 2


@pytest.mark.parametrize(
    "name", ["кошка", "猫とソファ", "قطة", "🐈‍⬛", "a\u0301", "\u0000", "\ud800", "x" * 500, "Đường", "हिन्दी", "\u202e"]
)
def test_any_name_can_be_drawn(name: str) -> None:
    strip = draw_legend([LegendEntry(7, name, 0.5), LegendEntry(8, "cat", 0.0)], 400, max_height=200)
    assert np.asarray(strip).min() < 100  # something is written
    assert strip.width == 400


def test_unprintable_labels_are_drawn_as_their_number() -> None:
    private = draw_legend([LegendEntry(7, "\ue0ff\ue0fe", 0.5)], 400, max_height=200)
    numbered = draw_legend([LegendEntry(7, "label 7", 0.5)], 400, max_height=200)
    assert np.array_equal(np.asarray(private), np.asarray(numbered))


def test_format_coverage() -> None:
    assert [format_coverage(share) for share in (0.0, 0.0004, 0.1234, 1.0)] == [
        "not found",
        "<0.1 %",
        "12.3 %",
        "100.0 %",
    ]


def test_draw_masks_takes_any_numbers() -> None:
    numbers = np.arange(12, dtype=np.uint16).reshape(3, 4) * 100
    assert draw_masks(np.zeros((3, 4, 3), np.uint8), [numbers], 0.5).dtype == np.uint8
    assert Image.fromarray(draw_masks(np.zeros((3, 4, 3), np.uint8), [numbers * 0], 0.5)).getbbox() is None
