"""Reconstructions of images as VAR (arXiv:2404.02905) prepares them for validation: Lanczos to 9/8 of the size.

VAR's evaluation of reconstructions is not released. Crop and truncation are those of its code for data and samples;
distance and scores are those of WeTok's protocol.
"""

from __future__ import annotations

from PIL import Image

from engine.data.resampling import Resize, resized_window
from evaluations.protocols.wetok import WeTokProtocol

MARGIN = 1.125  # the short side over that of the crop


def lanczos_crop(image: Image.Image, size: int) -> Image.Image:
    """Short side to 1.125 `size` (Lanczos), then the central window: as torchvision resizes and crops."""
    width, height = image.size
    short, target = min(width, height), round(MARGIN * size)
    resize = Resize((int(target * width / short), int(target * height / short)), Image.Resampling.LANCZOS)
    left, top = (round((side - size) / 2.0) for side in resize.size)
    return resized_window(image, [resize], (left, top, left + size, top + size))


class VARProtocol(WeTokProtocol):
    """See the module docstring."""

    name = "var"
    crop_name = "Lanczos to 9/8 of the size, center"

    def crop(self, image: Image.Image, size: int) -> Image.Image:
        return lanczos_crop(image, size)
