"""One fixed colour a label number: the same in overlays, in masks and from run to run."""

import math

Colour = tuple[int, int, int]

# Chosen by search: apart by >= 0.12 in OKLab to normal sight and to the three kinds of colour blindness (Machado 2009).
_FIRST: tuple[Colour, ...] = (
    (15, 79, 238),  # blue
    (231, 138, 0),  # orange
    (12, 246, 243),  # cyan
    (255, 47, 102),  # rose
    (172, 215, 8),  # lime
    (163, 91, 183),  # violet
    (172, 53, 18),  # brick
    (0, 168, 157),  # teal
    (228, 152, 237),  # lilac
    (228, 244, 114),  # straw
)
_GOLDEN_ANGLE = math.tau * (1 - 1 / ((1 + 5**0.5) / 2))
_LIGHTNESS = (0.72, 0.56, 0.84)


def colour(number: int) -> Colour:
    """sRGB of the label `number` (1, 2, ...); 0, the background, is black."""
    if number == 0:
        return (0, 0, 0)
    if number <= len(_FIRST):
        return _FIRST[number - 1]
    turn = number - len(_FIRST) - 1
    return _oklch(_LIGHTNESS[turn % len(_LIGHTNESS)], 0.16, 0.5 + turn * _GOLDEN_ANGLE)


def hex_colour(number: int) -> str:
    """`colour` as "#RRGGBB"."""
    return "#{:02X}{:02X}{:02X}".format(*colour(number))


def colours(count: int) -> list[Colour]:
    """Colours of the numbers 0 .. count - 1."""
    return [colour(number) for number in range(count)]


def _oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Oklab's polar form -> sRGB, with less chroma where the screen has not so much (Ottosson, bottosson.github.io)."""
    while True:
        a, b = chroma * math.cos(hue), chroma * math.sin(hue)
        long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
        middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
        short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
        linear = (
            4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
        )
        if all(-1e-4 <= value <= 1 + 1e-4 for value in linear):
            red, green, blue = (round(255 * _gamma(min(1.0, max(0.0, value)))) for value in linear)
            return red, green, blue
        chroma -= 0.005


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055
