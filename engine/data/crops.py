"""Crops of the ADM code base (Dhariwal and Nichol, arXiv:2105.05233): center, random, and ten crops; and padding.

All return PIL images of `size` x `size` pixels.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps

from engine.data.resampling import Resize, resized_window


def short_side_steps(size: tuple[int, int], target: int) -> list[Resize]:
    """ADM's rule: halve with BOX while the short side is at least twice `target`, then BICUBIC."""
    steps = []
    width, height = size
    while min(width, height) >= 2 * target:
        width, height = width // 2, height // 2
        steps.append(Resize((width, height), Image.Resampling.BOX))
    scale = target / min(width, height)
    steps.append(Resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))
    return steps


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's center crop: short side to `size`, then the central window."""
    steps = short_side_steps(image.size, size)
    width, height = steps[-1].size
    left = (width - size) // 2
    top = (height - size) // 2
    return resized_window(image, steps, (left, top, left + size, top + size))


def pad_resized(image: Image.Image, size: int) -> Image.Image:
    """The whole image, its long side resized to `size` (Lanczos), in the middle of a black square.

    The rule of benchmarks of text in pictures of any shape (arXiv:2505.18142, by the released code of a user of it).
    """
    ratio = min(size / image.width, size / image.height)
    width, height = (min(size, math.ceil(side * ratio)) for side in image.size)
    square = Image.new("RGB", (size, size))
    square.paste(image.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


def random_crop(image: Image.Image, size: int, rng: np.random.Generator, min_scale: float = 0.8) -> Image.Image:
    """ADM's random crop: short side to a uniform integer, then a uniform window.

    The short side becomes size..ceil(size / min_scale) pixels, ends included.
    """
    steps, left, top = random_window(image.size, size, rng, min_scale)
    return resized_window(image, steps, (left, top, left + size, top + size))


def random_window(
    image_size: tuple[int, int], size: int, rng: np.random.Generator, min_scale: float
) -> tuple[list[Resize], int, int]:
    """Draws a random crop of an image of (width, height): how it is resized, and left and top of the window."""
    # The order of the draws is part of the recipe.
    steps = short_side_steps(image_size, int(rng.integers(size, largest_short_side(size, min_scale) + 1)))
    width, height = steps[-1].size
    left = int(rng.integers(0, width - size + 1))
    top = int(rng.integers(0, height - size + 1))
    return steps, left, top


def largest_short_side(size: int, min_scale: float) -> int:
    """The largest short side, in pixels, to which a random crop resizes an image."""
    return math.ceil(size / min_scale)


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
