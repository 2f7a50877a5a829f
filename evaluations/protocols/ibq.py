"""The reconstruction evaluation of IBQ (arXiv:2412.02692), as far as its released code was read.

That of WeTok, but for the resize before the crop: OpenCV's bilinear one, which is not antialiased.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from evaluations.protocols.wetok import WeTokProtocol


def plain_bilinear_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to `size`, each new pixel from the four around it whatever the factor, then the central window."""
    width, height = image.size
    scale = size / min(width, height)
    new_width, new_height = round(scale * width), round(scale * height)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    rows = _taps(height, new_height, top, size)
    columns = _taps(width, new_width, left, size)
    return Image.fromarray(_resampled(np.asarray(image), rows, columns))


Taps = tuple[np.ndarray, np.ndarray, np.ndarray]  # the two positions between which each new one lies, and how far


def _taps(count: int, new_count: int, start: int, length: int) -> Taps:
    """Those of new positions `start` to `start + length`, with half-pixel centers, where `count` become `new_count`."""
    centers = (np.arange(start, start + length) + 0.5) * (count / new_count) - 0.5
    centers = centers.clip(0, count - 1)
    first = np.floor(centers).astype(np.int64)
    return first, np.minimum(first + 1, count - 1), centers - first


def _resampled(pixels: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """uint8 (H,W,3) -> (size,size,3): linear along both axes, rounded to the nearest once.

    OpenCV computes in fixed point; its pixels may differ by one level.
    """
    above, below, down = rows
    left, right, across = columns
    mixed = pixels[above] * (1 - down)[:, None, None] + pixels[below] * down[:, None, None]
    mixed = mixed[:, left] * (1 - across)[:, None] + mixed[:, right] * across[:, None]
    return np.floor(mixed + 0.5).astype(np.uint8)


class IBQProtocol(WeTokProtocol):
    """See the module docstring."""

    name = "ibq"
    crop_name = "bilinear center by OpenCV, not antialiased"

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        return plain_bilinear_crop(image, size)
