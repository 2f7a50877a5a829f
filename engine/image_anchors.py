"""Reconstructions that need no network: what the PSNR of a tokenizer is to be compared with.

    mean_color   every pixel of an image becomes the mean color of the image
    shrunken     an image is shrunk to a grid with one cell per token, and enlarged again: all colors and no detail

A cell of the grid holds 24 bits, a token holds 8 to 18. A tokenizer that is above `shrunken` therefore codes more with
fewer bits; one that is trained for minutes stays below it on smooth images.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from engine.data.images import to_float, to_uint8
from engine.image_metrics import MAX_PSNR, psnr

ANCHORS = ("psnr_mean_color", "psnr_shrunken")  # the names of their PSNRs in records


def mean_color(images: Tensor) -> Tensor:
    """Every pixel becomes the mean color of its image: float (B,3,H,W) -> the same shape."""
    return images.mean((2, 3), keepdim=True).expand_as(images)


def shrunken(images: Tensor, num_tokens: int) -> Tensor:
    """Shrinks by area to a grid with a cell per token, and enlarges bicubically: float (B,3,H,W) -> the same shape.

    The grid is square: where `num_tokens` is no square number, its side is the largest that needs no more cells.
    """
    side = math.isqrt(num_tokens)
    height, width = images.shape[2:]
    grid = F.interpolate(images, size=(min(side, height), min(side, width)), mode="area")
    return F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)


def anchor_psnrs(images_u8: Tensor, num_tokens: int) -> dict[str, Tensor]:
    """{name of `ANCHORS`: PSNR in dB of each image} for uint8 images (B,3,H,W): float64 (B,), at most `MAX_PSNR`.

    As for reconstructions, pixels are rounded to 8 bits before they are compared.
    """
    images = to_float(images_u8)
    pictures = (mean_color(images), shrunken(images, num_tokens))
    psnrs = (psnr(to_uint8(picture), images_u8).clamp_max(MAX_PSNR) for picture in pictures)
    return dict(zip(ANCHORS, psnrs, strict=True))
