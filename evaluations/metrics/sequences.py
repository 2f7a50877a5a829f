"""Variety and memorization of generated code sequences, nearest training images, and images of noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NEAREST_CANDIDATES = 5000  # training images among which the nearest one is looked for


def noise_images(count: int, size: int, seed: int) -> Tensor:
    """Uniform noise, uint8 (count,3,size,size), whose distance is that of images without structure."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def sequence_keys(tokens: np.ndarray) -> list[bytes]:
    """One hashable key per code sequence, of tokens (n,N) of any integer type."""
    return [row.astype(np.int32).tobytes() for row in tokens]


def fraction_distinct(tokens: np.ndarray) -> float:
    """Different sequences per sequence, of code sequences (n,N)."""
    return len(set(sequence_keys(tokens))) / len(tokens)


def memorized_sequences(tokens: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Which code sequences (n,N) occur among those of the training images (images,views,N): (n,) bool."""
    sequences = sequence_keys(tokens)
    distinct = set(sequences)
    known: set[bytes] = set()
    for views in training:  # one image at a time: the training codes may be larger than memory
        known |= distinct.intersection(sequence_keys(views))
    return np.array([sequence in known for sequence in sequences])


def nearest_training(images: Tensor, training: Tensor) -> Tensor:
    """Indices (n,) of the training images with the smallest squared pixel differences.

    Images (n,3,H,W) and training images (m,3,H,W) are uint8.
    """
    pixels = images.flatten(1).float() / 255
    training_pixels = training.flatten(1).float() / 255
    return torch.cdist(pixels, training_pixels).argmin(1)
