"""How an image becomes a training sample, or one of a batch of center crops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from engine.data.config import DataConfig
from engine.data.crops import center_crop, random_crop
from engine.data.images import image_tensor
from engine.data.sources import ImageSource, read_source
from engine.data.stream import position_rng


def training_item(source: ImageSource, config: DataConfig, seed: int) -> Callable[[int, int], dict[str, Tensor]]:
    """`item(index, position)`:

    the sample that stands at `position` of the training order; augmentation depends on both only.
    """

    def item(index: int, position: int) -> dict[str, Tensor]:
        image, index, skipped = read_source(source, index, config.skip_broken)
        rng = position_rng(seed, position)
        if config.random_crop:
            image = random_crop(image, config.image_size, rng, config.min_crop_scale)
        else:
            image = center_crop(image, config.image_size)
        if rng.random() < config.flip_prob:
            image = ImageOps.mirror(image)
        return {
            "images_u8": image_tensor(image),
            "labels": torch.tensor(int(source.labels[index])),
            "index": torch.tensor(index),
            "position": torch.tensor(position),
            "skipped_images": torch.tensor(skipped),
        }

    return item


def labelled_batch(
    source: ImageSource, image_size: int, indices: range | np.ndarray, skip_broken: bool = False
) -> tuple[Tensor, Tensor]:
    """Centre crops of several images, uint8 (B, 3, image_size, image_size), and the labels (B,) of those that were
    read.
    """
    read = [read_source(source, int(i), skip_broken) for i in indices]
    images = torch.stack([image_tensor(center_crop(image, image_size)) for image, _, _ in read])
    return images, torch.tensor([int(source.labels[at]) for _, at, _ in read])


def center_batch(
    source: ImageSource, image_size: int, indices: range | np.ndarray, skip_broken: bool = False
) -> Tensor:
    """Centre crops of several images, uint8 (B, 3, image_size, image_size)."""
    return labelled_batch(source, image_size, indices, skip_broken)[0]
