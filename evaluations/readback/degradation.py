"""Pictures made worse in known ways: the anchors of text_readback, and part of what its reader is trained on."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.images import image_tensor, to_pil

BLUR_SIGMA = 2.0  # pixels, of the anchor
JPEG_QUALITY = 10  # of the anchor


def blurred(image_u8: Tensor, sigma: float) -> Tensor:
    """A picture uint8 (3,H,W) under a Gaussian of `sigma` pixels; edges are repeated."""
    from scipy import ndimage

    pixels = ndimage.gaussian_filter(image_u8.double().numpy(), (0, sigma, sigma), mode="nearest")
    return _rounded(pixels)


def compressed(image_u8: Tensor, quality: int) -> Tensor:
    """A picture uint8 (3,H,W) as Pillow reads it back from a JPEG file, with colors at half the resolution (4:2:0)."""
    buffer = io.BytesIO()
    to_pil(image_u8).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(buffer) as image:
        return image_tensor(image)


def shrunk_and_enlarged(image_u8: Tensor, factor: float) -> Tensor:
    """A picture uint8 (3,H,W) resized to `factor` of its sides and back, bilinear and antialiased, as Pillow does."""
    image = to_pil(image_u8)
    small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image_tensor(image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR))


def noisy(image_u8: Tensor, std: float, rng: np.random.Generator) -> Tensor:
    """A picture uint8 (3,H,W) with Gaussian noise of `std`, in fractions of white."""
    pixels = image_u8.double().numpy()
    return _rounded(pixels + rng.normal(0, 255 * std, pixels.shape))


def _rounded(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8))


# What a number between "all is read" and "nothing is read" is to be compared with: name -> the picture made worse.
ANCHORS: dict[str, Callable[[Tensor], Tensor]] = {
    "blur": lambda image_u8: blurred(image_u8, BLUR_SIGMA),
    "jpeg": lambda image_u8: compressed(image_u8, JPEG_QUALITY),
}
ANCHOR_TITLES = {"blur": f"Gaussian blur, sigma {BLUR_SIGMA:g} px", "jpeg": f"JPEG, quality {JPEG_QUALITY}"}
