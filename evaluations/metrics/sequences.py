"""Variety and memorization of code sequences, and nearest training images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEAREST_CANDIDATES = 5000  # training images among which the nearest one is looked for


def noise_images(count: int, size: int, seed: int) -> Tensor:
    """Uniform noise, uint8 (count,3,size,size): the distance of no image at all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def sequence_shares(tokens: np.ndarray, training: np.ndarray) -> dict[str, float]:
    """`distinct` and `memorised` of code sequences (n, N); `training` is (images, views, N)."""
    made = [row.astype(np.int32).tobytes() for row in tokens]
    wanted, known = set(made), set()
    for image in training:  # one at a time: the training codes may be larger than memory
        known |= wanted & {row.astype(np.int32).tobytes() for row in image}
    return {"distinct": len(wanted) / len(made), "memorised": sum(row in known for row in made) / len(made)}


def nearest_training(images: Tensor, training: Tensor) -> Tensor:
    """Index of the training image with the smallest squared pixel difference. uint8 (n,3,H,W), (m,3,H,W) -> (n,)."""
    a, b = images.flatten(1).float() / 255, training.flatten(1).float() / 255
    return torch.cdist(a, b).argmin(1)
