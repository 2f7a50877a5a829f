"""Differentiable augmentation of discriminator inputs.

This is DiffAugment (arXiv:2006.10738), as StyleGAN-T (arXiv:2301.09515) uses it. Every image draws its own random
numbers from torch's generator; gradients pass through to the images.

Shapes    images (B,3,H,W) in [-1,1] -> (B,3,H,W), which may leave that range
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION = 0.125  # largest shift, as a fraction of the side
CUTOUT = 0.2  # side of the hole, as a fraction of the image's side


def diff_augment(images: Tensor) -> Tensor:
    """Translation, color and cutout, in this order, always on."""
    return cutout(color(translate(images)))


def translate(images: Tensor) -> Tensor:
    """Shifts by up to 12.5 % of the side in both directions; zeros come in."""
    count, _, height, width = images.shape
    device = images.device

    # A random window of the padded images: its upper left corner is (down, right).
    max_down = _rounded(height * TRANSLATION)
    max_right = _rounded(width * TRANSLATION)
    down = torch.randint(0, 2 * max_down + 1, (count, 1), device=device)
    right = torch.randint(0, 2 * max_right + 1, (count, 1), device=device)
    padded = F.pad(images, (max_right, max_right, max_down, max_down))

    # All windows at once: indices (B,H,W) of their pixels.
    sample = torch.arange(count, device=device)[:, None, None]
    rows = (torch.arange(height, device=device) + down)[:, :, None]
    columns = (torch.arange(width, device=device) + right)[:, None, :]
    return padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


def color(images: Tensor) -> Tensor:
    """Brightness plus -0.5 to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    images = images + _uniform(images) - 0.5

    gray = images.mean(dim=1, keepdim=True)
    images = (images - gray) * (2 * _uniform(images)) + gray

    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_uniform(images) + 0.5) + mean


def cutout(images: Tensor) -> Tensor:
    """Sets a rectangle of 20 % of each side at a random place to zero; it may reach over the border."""
    count, _, height, width = images.shape
    device = images.device
    hole_height = _rounded(height * CUTOUT)
    hole_width = _rounded(width * CUTOUT)

    # The center may be any pixel; for an even side also the edge behind the last one, as released.
    top = torch.randint(0, height + 1 - hole_height % 2, (count, 1), device=device) - hole_height // 2
    left = torch.randint(0, width + 1 - hole_width % 2, (count, 1), device=device) - hole_width // 2

    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)
    in_rows = (y >= top) & (y < top + hole_height)
    in_columns = (x >= left) & (x < left + hole_width)
    hole = in_rows[:, :, None] & in_columns[:, None, :]
    return images * (~hole[:, None])


def _rounded(length: float) -> int:
    """The nearest whole number, halves upward."""
    return int(length + 0.5)


def _uniform(images: Tensor) -> Tensor:
    """One number in [0,1) per image (B,1,1,1)."""
    return torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
