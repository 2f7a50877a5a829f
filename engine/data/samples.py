"""How an image becomes a training sample, or one of a batch of center crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.data.config import DataConfig
from engine.data.crops import center_crop, random_crop
from engine.data.fast_decode import fast_center_crop, fast_random_crop, fast_source
from engine.data.images import image_tensor
from engine.data.sources import ImageSource, read_source
from engine.data.stream import position_rng
from engine.seeds import RANDOM_BITS, counter_rng

COMPARED_IMAGES = 16  # of fast and exact decoding
RANDOM_BITS_KEY = 0xB175  # keeps the random numbers of networks apart from those of crops

Item = Callable[[int, int], dict[str, Tensor]]  # (index, position) -> sample


def training_item(source: ImageSource, config: DataConfig, seed: int) -> Item:
    """Returns `item(index, position)`, which makes a training sample of image `index`.

    `position` is its place in the order of the run. Crop and flip depend on (seed, position) only, through
    `position_rng`; pixels are those of Pillow, unless the config asks for `fast_decode`. A sample holds

        images_u8         uint8 (3, image_size, image_size)
        labels            int64 ()
        index, position   int64 (): the image that was read, which differs from `index` if that one is broken
        skipped_images    int64 (): broken images that were passed
    """

    read_from = fast_source(source, config) if config.fast_decode else source
    crop_and_flip = _crop_and_flip_fast if config.fast_decode else _crop_and_flip

    def item(index: int, position: int) -> dict[str, Tensor]:
        image, index, num_skipped = read_source(read_from, index, config.skip_broken)
        return {
            "images_u8": crop_and_flip(image, config, position_rng(seed, position)),
            "labels": torch.tensor(int(source.labels[index])),
            "index": torch.tensor(index),
            "position": torch.tensor(position),
            "skipped_images": torch.tensor(num_skipped),
        }

    return item


def with_random_bits(item: Item, seed: int) -> Item:
    """Returns `item` with an entry more in its samples, for choices at random inside of a network:

        random_bits       int64 (): a whole number below 2^31

    It depends on (seed, position) only.
    """

    def extended(index: int, position: int) -> dict[str, Tensor]:
        bits = int(counter_rng(seed, RANDOM_BITS_KEY, position).integers(2**RANDOM_BITS))
        return item(index, position) | {"random_bits": torch.tensor(bits)}

    return extended


# In both, the order of the draws is part of the recipe: crop size, left, top, flip.
def _crop_and_flip(image: Image.Image, config: DataConfig, rng: np.random.Generator) -> Tensor:
    """A training sample of an image, uint8 (3, image_size, image_size), with the bits of Pillow."""
    if config.random_crop:
        image = random_crop(image, config.image_size, rng, config.min_crop_scale)
    else:
        image = center_crop(image, config.image_size)
    return image_tensor(ImageOps.mirror(image) if rng.random() < config.flip_prob else image)


def _crop_and_flip_fast(image: Image.Image, config: DataConfig, rng: np.random.Generator) -> Tensor:
    """The same with slightly other pixels, in less time."""
    if config.random_crop:
        pixels = fast_random_crop(image, config.image_size, rng, config.min_crop_scale)
    else:
        pixels = fast_center_crop(image, config.image_size)
    return pixels.flip(2) if rng.random() < config.flip_prob else pixels


def decoding_stamp(source: ImageSource, config: DataConfig, seed: int) -> dict[str, Any]:
    """What the stamp of weights says of `data.fast_decode`: nothing without it, else how far its samples are off.

    They are compared with exact ones over evenly spread images: the largest and the mean difference in levels of 255,
    and the share of values that differ.
    """
    if not config.fast_decode:
        return {}
    fast = training_item(source, config, seed)
    exact = training_item(source, replace(config, fast_decode=False), seed)
    indices = np.unique(np.linspace(0, len(source) - 1, COMPARED_IMAGES).astype(int)).tolist()
    pairs = [[item(index, index)["images_u8"].float() for item in (exact, fast)] for index in indices]

    # How far they are apart.
    gaps = torch.stack([(one - other).abs() for one, other in pairs])
    return {
        "fast_decode": {
            "compared_images": len(indices),
            "largest_difference": int(gaps.max()),
            "mean_difference": round(gaps.mean().item(), 4),
            "different_values": round((gaps > 0).float().mean().item(), 4),
        }
    }


def fixed_choice(count: int, num_chosen: int) -> np.ndarray:
    """Chooses `num_chosen` of the numbers below `count` at random, the same ones in every run, in rising order.

    All of them where there are fewer. Sets of images are sorted by class, so that the first ones show a few classes.
    """
    random_order = np.random.default_rng(0).permutation(count)
    return np.sort(random_order[:num_chosen])


def evenly_spread(count: int, num_chosen: int) -> np.ndarray:
    """Chooses `num_chosen` of the numbers below `count`, from the first to the last, in rising order.

    All of them where there are fewer.
    """
    return np.unique(np.linspace(0, count - 1, min(num_chosen, count)).round().astype(int))


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
