"""Joint augmentation of an image and its mask.

All randomness comes from an explicit numpy Generator: equal seeds give equal pixels on every machine. Geometric steps
(flip, elastic, shift/scale/rotate, crop) are composed into one field of input coordinates per output pixel and sampled
once: bilinear with reflection for the image, nearest for the mask, `ignore` outside the frame.

Coordinates are (y, x) of pixel centres; the frame is [-1, 1] in both directions, independent of the aspect ratio.
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
class Augmentation:
    """The augmentation of the paper, with a single resampling; the default strengths are its for PASCAL-5i.

    The paper gives one number for "colour jitter"; that hue has a fifth of it is our choice.
    """

    probability: float = 0.5  # of each step, drawn independently
    jitter: float = 0.5  # brightness, contrast and saturation times 1 +- jitter; hue +- jitter / 5 of a circle
    noise: float = 0.028  # maximum standard deviation of Gaussian noise on RGB in [0, 1]
    flip: bool = True  # horizontally
    elastic: float = 0.02  # standard deviation of the smooth displacement, as a fraction of the frame
    shift: float = 0.1  # +- fraction of the frame
    scale: float = 0.1  # +- fraction of the frame
    rotate: float = 20.0  # +- degrees
    crop: float = 0.5  # minimum area fraction of a random resized crop (1: none), with an aspect ratio of 3/4..4/3
    ignore: int = 255  # mask value outside the frame

    def __call__(self, rgb: Rgb, mask: Mask, rng: np.random.Generator) -> tuple[Rgb, Mask]:
        """Return a new image and mask of the same size and dtype."""
        on = rng.random(6) < self.probability
        height, width = mask.shape
        field = identity(height, width)
        # The field maps output to input coordinates: the step applied last to the image comes first here.
        if on[0]:
            low, high = _random_box(rng, self.crop).astype(np.float32).reshape(2, 2)
            field = (high + low) / 2 + field * (high - low) / 2
        field = self._affine_field(field, rng) if on[1] else field
        field = field + _elastic_field(height, width, self.elastic, rng) if on[2] else field
        field = field * np.array([1, -1], np.float32) if on[3] and self.flip else field
        if on[:4].any():
            rgb, mask = warp(rgb, mask, field, self.ignore)
        rgb = jitter(rgb, self.jitter, rng) if on[4] else rgb
        if on[5]:
            sigma = np.float32(rng.uniform(0, self.noise))
            noise = sigma * rng.standard_normal(rgb.shape, dtype=np.float32)
            return _to_uint8(rgb.astype(np.float32) / 255 + noise), mask.copy()
        return rgb.copy(), mask.copy()

    def _affine_field(self, field: Field, rng: np.random.Generator) -> Field:
        """Shift, scale and rotate about the centre, with square pixels (a rotated square stays a square)."""
        height, width = field.shape[:2]
        angle = np.deg2rad(rng.uniform(-self.rotate, self.rotate))
        zoom = 1 + rng.uniform(-self.scale, self.scale)
        shift = rng.uniform(-self.shift, self.shift, size=2) * 2
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
        proportions = np.array([height, width])
        matrix = turn * proportions[None, :] / proportions[:, None]
        return (field @ matrix.T - shift).astype(np.float32)


PASCAL_AUGMENT = Augmentation()
COCO_AUGMENT = Augmentation(jitter=0.2, rotate=10.0)


def view(rgb: Rgb, index: int, seed: int) -> UInt8[ndarray, "h2 w2 3"]:
    """Return light augmentation number `index` of an image, for caching the features of a few views per image.

    View 0 is the image itself; odd views are flipped, views from 2 on are cropped without resampling (to 45..100 % of
    the area), and all but view 0 have colour jitter. Views differ in size. The seed is that of the image, from 0 on.
    """
    rng = np.random.default_rng((seed, index))
    return rgb if index == 0 else jitter(_frame(rgb, index, rng), 0.3, rng)


def view_mask(mask: Mask, index: int, seed: int) -> Integer[ndarray, "h2 w2"]:
    """Return the mask of the `view` of the same number and seed."""
    return mask if index == 0 else _frame(mask, index, np.random.default_rng((seed, index)))


def _frame(pixels: ndarray, index: int, rng: np.random.Generator) -> ndarray:
    """Flip and crop an image or mask (H, W, ...) as the view does."""
    height, width = pixels.shape[:2]
    framed = pixels[:, ::-1] if index % 2 else pixels
    if index >= 2:
        box = (_random_box(rng, 0.45) + 1) / 2 * [height, width, height, width]
        (top, left), (bottom, right) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        framed = framed[top:bottom, left:right]
    return framed.copy()  # an image one pixel wide counts as contiguous despite its negative stride


def identity(height: int, width: int) -> Field:
    """Return the field of the unchanged image."""
    y = (np.arange(height, dtype=np.float32) * 2 + 1) / height - 1
    x = (np.arange(width, dtype=np.float32) * 2 + 1) / width - 1
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def _random_box(rng: np.random.Generator, smallest: float) -> Float[ndarray, "4"]:
    """Return a box (y0, x0, y1, x1) in [-1, 1] of random position, area fraction smallest..1 and aspect 3/4..4/3.

    Boxes larger than the frame are clipped, which costs at most a quarter of the area. 1 means no crop.
    """
    if smallest >= 1:
        return np.array([-1.0, -1.0, 1.0, 1.0])
    area, ratio = rng.uniform(smallest, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    height, width = min(1.0, np.sqrt(area / ratio)), min(1.0, np.sqrt(area * ratio))
    y, x = rng.uniform(-1 + height, 1 - height), rng.uniform(-1 + width, 1 - width)
    return np.array([y - height, x - width, y + height, x + width])


def _elastic_field(height: int, width: int, strength: float, rng: np.random.Generator) -> Field:
    """Return smooth random displacements with a standard deviation of about `strength` of the frame (6x6 grid)."""
    coarse = torch.from_numpy(rng.standard_normal((1, 2, 6, 6)).astype(np.float32)) * (2 * strength)
    fine = functional.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return fine[0].permute(1, 2, 0).numpy()


def warp(rgb: Rgb, mask: Mask, field: Field, ignore: int) -> tuple[Rgb, Mask]:
    """Sample image (bilinear, reflected) and mask (nearest, `ignore` outside the frame) at the field's coordinates."""
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
    """Randomly change brightness, contrast, saturation (by 1 +- strength) and hue (+- strength / 5 of a circle)."""
    brightness, contrast, saturation = 1 + rng.uniform(-strength, strength, size=3)
    hue = rng.uniform(-strength, strength) / 5 * 2 * np.pi
    turn = np.array([[1, 0, 0], [0, np.cos(hue), -np.sin(hue)], [0, np.sin(hue), np.cos(hue)]])
    # All steps are linear in the pixel, so together they are one 3x3 matrix and one constant.
    saturate = saturation * np.eye(3) + (1 - saturation) * np.outer(np.ones(3), _GREY)
    matrix = brightness * (np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ @ saturate)
    planes = torch.from_numpy(np.require(rgb, requirements=["C", "W"])).permute(2, 0, 1).flatten(1).float()  # (3, HW)
    grey = _GREY @ planes.mean(dim=1).numpy()
    factors = torch.from_numpy((contrast * matrix).astype(np.float32))
    constant = torch.from_numpy((matrix @ np.full(3, (1 - contrast) * grey)).astype(np.float32))
    moved = torch.addmm(constant[:, None], factors, planes).round_().clamp_(0, 255)
    return np.ascontiguousarray(moved.to(torch.uint8).view(3, *rgb.shape[:2]).permute(1, 2, 0).numpy())


def _to_uint8(image: Float[ndarray, "h w 3"]) -> Rgb:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
