"""`data.fast_decode=true`: training samples at a fraction of the time, with pixels that differ a little.

    decoding    JPEG files that are at least twice as large as needed are decoded at a half, a quarter or an eighth of
                their size, which the format allows; others as ever
    resizing    bicubic with antialiasing by torch for uint8, vectorized; Pillow's sums in lower precision
    crop, flip  the same windows, by the same random numbers

Values differ by up to 2 of 255 in about 0.3 % of the places, and by more where the file was decoded smaller. They
may also differ between kinds of CPUs. So it is for training alone: code extraction, validation and evaluations never
use it, and checkpoints say how far it was from the exact pixels (`engine.data.samples.decoding_stamp`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from engine.data.base import ImageSource, replaced_images
from engine.data.config import DataConfig
from engine.data.crops import largest_short_side, random_window, short_side_steps
from engine.data.decoding import Decoding
from engine.data.resampling import Resize


@dataclass(frozen=True)
class FastDecoding(Decoding):
    """Decodes JPEG files smaller, as long as their short side stays `short_side` or more."""

    short_side: int = 1  # pixels

    def prepare(self, image: Image.Image) -> None:
        image.draft("RGB", (self.short_side, self.short_side))


def fast_source(source: ImageSource, config: DataConfig) -> ImageSource:
    """The images of `source`, decoded fast where they are files; the source itself stays as it is."""
    if not isinstance(getattr(source, "decoding", None), Decoding):
        return source
    short_side = (
        largest_short_side(config.image_size, config.min_crop_scale) if config.random_crop else config.image_size
    )
    replaced_images(source)  # both count in one set
    fast = copy.copy(source)
    fast.decoding = FastDecoding(source.decoding.background, source.decoding.orientation, short_side)
    return fast


def fast_center_crop(image: Image.Image, size: int) -> Tensor:
    """`engine.data.crops.center_crop` of an RGB image, as uint8 (3, size, size)."""
    steps = short_side_steps(image.size, size)
    width, height = steps[-1].size
    return _resized(image, steps, (width - size) // 2, (height - size) // 2, size)


def fast_random_crop(image: Image.Image, size: int, rng: np.random.Generator, min_scale: float) -> Tensor:
    """`engine.data.crops.random_crop` of an RGB image, with the same draws, as uint8 (3, size, size)."""
    steps, left, top = random_window(image.size, size, rng, min_scale)
    return _resized(image, steps, left, top, size)


def _resized(image: Image.Image, steps: list[Resize], left: int, top: int, side: int) -> Tensor:
    """The window of `side` pixels at (left, top) of the image after all steps; the last one is torch's."""
    for step in steps[:-1]:
        image = image.resize(step.size, step.resample)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    width, height = steps[-1].size
    if image.size != (width, height):
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    return pixels[0, :, top : top + side, left : left + side].contiguous()
