"""Crops of the ADM code base (Dhariwal and Nichol, arXiv:2105.05233): center, random, and ten crops.

All return PIL images of `size` x `size` pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps


def _resize_short_side(image: Image.Image, target: int) -> Image.Image:
    """ADM's rule: halve with BOX while the short side is at least twice `target`, then BICUBIC."""
    while min(image.size) >= 2 * target:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = target / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's center crop: short side to `size`, then the central window."""
    image = _resize_short_side(image, size)
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, min_scale: float = 0.8) -> Image.Image:
    """ADM's random crop: short side to a uniform integer, then a uniform window.

    The short side becomes size..ceil(size / min_scale) pixels, ends included.
    """
    image = _resize_short_side(image, int(rng.integers(size, math.ceil(size / min_scale) + 1)))
    left = int(rng.integers(0, image.width - size + 1))
    top = int(rng.integers(0, image.height - size + 1))
    return image.crop((left, top, left + size, top + size))


def ten_crop(image: Image.Image, size: int, crop_range: float = 1.1) -> list[Image.Image]:
    """Four corners and center of the center crop to int(size * crop_range), then the same five mirrored."""
    large = center_crop(image, int(size * crop_range))
    far = large.width - size
    middle = round((large.width - size) / 2.0)
    corners = [(0, 0), (far, 0), (0, far), (far, far), (middle, middle)]
    return [
        whole.crop((left, top, left + size, top + size))
        for whole in (large, ImageOps.mirror(large))
        for left, top in corners
    ]
