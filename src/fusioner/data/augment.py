"""Augmentations that move an image and its mask together.

Everything is driven by an explicit numpy Generator: the same seed gives the same pixels on every machine. Geometry
(flip, elastic, shift/scale/rotate, crop) is composed into one map from output to input coordinates and sampled once:
bilinear for the image (reflected at the frame), nearest for the mask, `ignore` where the map leaves the frame.

Coordinates are (y, x) with pixel centres, the frame being [-1, 1] in both directions whatever the aspect ratio.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from numpy import ndarray
from torch.nn import functional

Rgb = UInt8[ndarray, "h w 3"]
Mask = Integer[ndarray, "h w"]
Field = Float[ndarray, "h w 2"]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_TO_YIQ = np.array([_GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], dtype=np.float32)


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentation; the defaults are the paper's for PASCAL-5i.

    Attributes:
        probability: of each step, drawn independently.
        jitter: brightness, contrast and saturation factors lie in 1 +- jitter; hue turns by up to jitter / 5 of a
            circle (the paper gives one number for "colour jitter"; the fifth is our reading).
        noise: largest standard deviation of Gaussian noise, on RGB in [0, 1].
        flip: mirror left and right.
        elastic: standard deviation of the smooth displacement, as a share of the frame.
        shift, scale: share of the frame; rotate: degrees; each uniform in +- its value.
        crop: smallest share of the area a random resized crop keeps (1 = no crop), its aspect ratio within 3/4..4/3.
    """

    probability: float = 0.5
    jitter: float = 0.5
    noise: float = 0.028
    flip: bool = True
    elastic: float = 0.02
    shift: float = 0.1
    scale: float = 0.1
    rotate: float = 20.0
    crop: float = 0.5


PASCAL_AUGMENT = AugmentConfig()
COCO_AUGMENT = AugmentConfig(jitter=0.2, rotate=10.0)


class Augmentation:
    """The paper's augmentation: every step of the recipe on with its probability, one resampling in all."""

    def __init__(self, recipe: AugmentConfig = PASCAL_AUGMENT, ignore: int = 255):
        self.recipe, self.ignore = recipe, ignore

    def __call__(self, rgb: Rgb, mask: Mask, rng: np.random.Generator) -> tuple[Rgb, Mask]:
        """A new image and mask of the same size and dtype; the inputs stay as they are."""
        r = self.recipe
        on = rng.random(6) < r.probability
        height, width = mask.shape
        field = identity(height, width)
        # The map runs from output to input, so the step applied last to the picture comes first here.
        field = crop_field(field, random_box(rng, r.crop)) if on[0] else field
        field = affine_field(field, rng, r) if on[1] else field
        field = field + elastic_field(height, width, r.elastic, rng) if on[2] else field
        field = field * np.array([1, -1], np.float32) if on[3] and r.flip else field
        if on[:4].any():
            rgb, mask = warp(rgb, mask, field, self.ignore)
        rgb = jitter(rgb, r.jitter, rng) if on[4] else rgb
        return (add_noise(rgb, r.noise, rng) if on[5] else rgb.copy()), mask.copy()


def view(rgb: Rgb, mask: Mask, index: int, seed: int) -> tuple[UInt8[ndarray, "h2 w2 3"], Integer[ndarray, "h2 w2"]]:
    """Light view number `index` of an image, for caching features of a few views of every image.

    View 0 is the image itself; odd views are mirrored, views from 2 on are cropped (45 to 100 % of the area, by
    slicing: no resampling), and all but view 0 are jittered in colour. Views differ in size; classes only disappear.

    Args:
        index: 0, 1, 2, ...; seed: any non-negative number, different for every image.
    """
    if index == 0:
        return rgb, mask
    rng = np.random.default_rng((seed, index))
    return jitter(_frame(rgb, index, rng), 0.3, rng), view_mask(mask, index, seed)


def view_mask(mask: Mask, index: int, seed: int) -> Integer[ndarray, "h2 w2"]:
    """The mask of `view` without the picture: what a cache of features needs."""
    return mask if index == 0 else _frame(mask, index, np.random.default_rng((seed, index)))


def _frame(pixels: ndarray, index: int, rng: np.random.Generator) -> ndarray:
    """The part of a picture or mask (H, W, ...) that a view shows, mirrored or not."""
    height, width = pixels.shape[:2]
    seen = pixels[:, ::-1] if index % 2 else pixels
    if index >= 2:
        box = (random_box(rng, 0.45) + 1) / 2 * [height, width, height, width]
        (top, left), (bottom, right) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        seen = seen[top:bottom, left:right]
    return seen.copy()  # a picture one pixel wide counts as contiguous in spite of its negative stride


def flip(rgb: Rgb, mask: Mask) -> tuple[Rgb, Mask]:
    """Left becomes right."""
    return np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(mask[:, ::-1])


def identity(height: int, width: int) -> Field:
    """The map that leaves every pixel where it is."""
    y = (np.arange(height, dtype=np.float32) * 2 + 1) / height - 1
    x = (np.arange(width, dtype=np.float32) * 2 + 1) / width - 1
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def random_box(rng: np.random.Generator, smallest: float) -> Float[ndarray, "4"]:
    """A box (y0, x0, y1, x1) within [-1, 1] of random area share smallest..1, aspect within 3/4..4/3, and place.

    Boxes that would stick out are clipped, so at most a quarter of the area is lost to the aspect. 1 means no crop.
    """
    if smallest >= 1:
        return np.array([-1.0, -1.0, 1.0, 1.0])
    area, ratio = rng.uniform(smallest, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    y, x = rng.uniform(-1 + height, 1 - height), rng.uniform(-1 + width, 1 - width)
    return np.array([y - height, x - width, y + height, x + width])


def crop_field(field: Field, box: Float[ndarray, "4"]) -> Field:
    """Stretch a box of the input over the whole output."""
    low, high = box[:2].astype(np.float32), box[2:].astype(np.float32)
    return (high + low) / 2 + field * (high - low) / 2


def affine_field(field: Field, rng: np.random.Generator, recipe: AugmentConfig) -> Field:
    """Shift, scale and rotate about the centre, in pixels' proportions (a rotated square stays a square)."""
    height, width = field.shape[:2]
    angle = np.deg2rad(rng.uniform(-recipe.rotate, recipe.rotate))
    zoom = 1 + rng.uniform(-recipe.scale, recipe.scale)
    shift = rng.uniform(-recipe.shift, recipe.shift, size=2) * 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    proportions = np.array([height, width])
    matrix = turn * proportions[None, :] / proportions[:, None]
    return (field @ matrix.T - shift).astype(np.float32)


def elastic_field(height: int, width: int, strength: float, rng: np.random.Generator) -> Field:
    """Smooth random displacements of standard deviation about `strength` of the frame, from a coarse 6x6 grid."""
    coarse = torch.from_numpy(rng.standard_normal((1, 2, 6, 6)).astype(np.float32)) * (2 * strength)
    fine = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return fine[0].permute(1, 2, 0).numpy()


def warp(rgb: Rgb, mask: Mask, field: Field, ignore: int) -> tuple[Rgb, Mask]:
    """Sample image (bilinear, reflected) and mask (nearest, `ignore` outside the frame) at a field's coordinates."""
    height, width = mask.shape
    image = torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    grid = torch.from_numpy(field[None, ..., ::-1].copy())  # grid_sample wants (x, y)
    sampled = functional.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    pixels = ((field + 1) * np.array([height, width], np.float32) - 1) / 2
    nearest = np.rint(pixels).astype(np.int64)
    inside = ((nearest >= 0) & (nearest < [height, width])).all(axis=-1)
    nearest = nearest.clip(0, [height - 1, width - 1])
    moved = np.where(inside, mask[nearest[..., 0], nearest[..., 1]], mask.dtype.type(ignore))
    return _to_uint8(sampled[0].permute(1, 2, 0).numpy() / 255), moved


def jitter(rgb: Rgb, strength: float, rng: np.random.Generator) -> Rgb:
    """Random brightness, contrast, saturation (factors in 1 +- strength) and hue (+- strength / 5 of a circle)."""
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, size=3)
    hue = rng.uniform(-strength, strength) / 5 * 2 * np.pi
    turn = np.array([[1, 0, 0], [0, np.cos(hue), -np.sin(hue)], [0, np.sin(hue), np.cos(hue)]])
    # Every step is linear in the pixel, so all of them together are one 3x3 matrix and one constant.
    saturate = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), _GREY)
    matrix = brightness * (np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ @ saturate)
    planes = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1).flatten(1).float()  # (3, HW)
    grey = _GREY @ planes.mean(dim=1).numpy()
    factors = torch.from_numpy((contrast * matrix).astype(np.float32))
    constant = torch.from_numpy((matrix @ np.full(3, (1 - contrast) * grey)).astype(np.float32))
    moved = torch.addmm(constant[:, None], factors, planes).round_().clamp_(0, 255)
    return np.ascontiguousarray(moved.to(torch.uint8).view(3, *rgb.shape[:2]).permute(1, 2, 0).numpy())


def add_noise(rgb: Rgb, strongest: float, rng: np.random.Generator) -> Rgb:
    """Gaussian noise of a random standard deviation up to `strongest` (RGB in [0, 1])."""
    sigma = np.float32(rng.uniform(0, strongest))
    return _to_uint8(rgb.astype(np.float32) / 255 + sigma * rng.standard_normal(rgb.shape, dtype=np.float32))


def _to_uint8(image: Float[ndarray, "h w 3"]) -> Rgb:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
