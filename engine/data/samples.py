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
    """Returns `item(index, position)`, which makes a training sample of image `index`.

    `position` is its place in the order of the run. Crop and flip depend on (seed, position) only, through
    `position_rng`. A sample holds

        images_u8         uint8 (3, image_size, image_size)
        labels            int64 ()
        index, position   int64 (): the image that was read, which differs from `index` if that one is broken
        skipped_images    int64 (): broken images that were passed
    """

    def item(index: int, position: int) -> dict[str, Tensor]:
        image, index, num_skipped = read_source(source, index, config.skip_broken)

        # The order of the draws is part of the recipe: crop size, left, top, flip.
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
            "skipped_images": torch.tensor(num_skipped),
        }

    return item


def fixed_choice(count: int, num_chosen: int) -> np.ndarray:
    """Chooses `num_chosen` of the numbers below `count` at random, the same ones in every run, in rising order.

    All of them where there are fewer. Sets of images are sorted by class, so that the first ones show a few classes.
    """
    random_order = np.random.default_rng(0).permutation(count)
    return np.sort(random_order[:num_chosen])


def labeled_batch(
    source: ImageSource, image_size: int, indices: range | np.ndarray, skip_broken: bool
) -> tuple[Tensor, Tensor]:
    """Reads center crops of several images and their labels.

    Returns uint8 (B, 3, image_size, image_size) and int64 (B,). With `skip_broken` the next readable image, with its
    label, takes the place of a broken one.
    """
    readings = [read_source(source, int(i), skip_broken) for i in indices]
    images = torch.stack([image_tensor(center_crop(image, image_size)) for image, _, _ in readings])
    labels = torch.tensor([int(source.labels[index]) for _, index, _ in readings])
    return images, labels


def center_batch(source: ImageSource, image_size: int, indices: range | np.ndarray, skip_broken: bool) -> Tensor:
    """Reads center crops of several images, uint8 (B, 3, image_size, image_size)."""
    return labeled_batch(source, image_size, indices, skip_broken)[0]
