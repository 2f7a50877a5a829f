"""Differentiable augmentation of discriminator inputs (DiffAugment, arXiv:2006.10738, as used by StyleGAN-T).

Images (B,3,H,W) in [-1,1]; every image draws its own numbers from torch's generator. Gradients pass through.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION = 0.125  # largest shift, share of the side


CUTOUT = 0.2  # side of the hole, share of the side


def diff_augment(images: Tensor) -> Tensor:
    """Translation, colour and cutout, in this order, always on."""
    return cutout(colour(translate(images)))


def _uniform(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)


def colour(images: Tensor) -> Tensor:
    """Brightness +-0.5, saturation times 0..2, contrast times 0.5..1.5."""
    images = images + _uniform(images) - 0.5
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (2 * _uniform(images)) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (_uniform(images) + 0.5) + mean


def translate(images: Tensor) -> Tensor:
    """Shifts by up to 12.5 % in both directions; zeros come in."""
    height, width = images.shape[-2:]
    limits = (int(height * TRANSLATION + 0.5), int(width * TRANSLATION + 0.5))
    device, count = images.device, len(images)
    down, right = (torch.randint(0, 2 * limit + 1, (count, 1), device=device) for limit in limits)
    padded = F.pad(images, (limits[1], limits[1], limits[0], limits[0]))
    rows = (torch.arange(height, device=device) + down)[:, :, None]
    columns = (torch.arange(width, device=device) + right)[:, None, :]
    sample = torch.arange(count, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


def cutout(images: Tensor) -> Tensor:
    """A square hole of 20 % of the side at a random place, cut by the border where it reaches over it."""
    height, width = images.shape[-2:]
    tall, wide = int(height * CUTOUT + 0.5), int(width * CUTOUT + 0.5)
    device, count = images.device, len(images)
    top = torch.randint(0, height + 1 - tall % 2, (count, 1), device=device) - tall // 2
    left = torch.randint(0, width + 1 - wide % 2, (count, 1), device=device) - wide // 2
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    inside = ((y >= top) & (y < top + tall))[:, :, None] & ((x >= left) & (x < left + wide))[:, None, :]
    return images * (~inside[:, None])
