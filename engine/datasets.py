"""Image data sets by name: folders, tar files, or a set that a package ships; and how an image becomes a training
sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.config import ConfigError, UserError, logger, lookup
from engine.folders import FolderSource, LooseSource, has_class_folders
from engine.images import ImageError, centre_crop, image_tensor, random_crop
from engine.packaged import PACKAGED
from engine.shards import ShardSource, is_shards
from engine.stream import position_rng

ON_DISK: dict[str, type] = {"folder": FolderSource, "loose": LooseSource, "shards": ShardSource}


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where images come from and how they are cropped."""

    name: str = "folder"  # folder | loose (one label for all) | shards (tar files) | mnist5k | twemoji | photos
    root: str = ""  # folder: one sub-folder per class; loose: files at any depth; shards: folder or a-{000..123}.tar
    val_root: str = ""  # held-out images of the same layout (shards: or of any); empty = no validation
    image_size: int = 256  # pixels, side of the square crop
    global_batch_size: int = 256  # images per optimizer step, over all ranks and micro-batches
    num_workers: int = 8  # loader processes per rank; 0 = in the training process
    random_crop: bool = True  # ADM random crop; false = centre crop
    min_crop_scale: float = 0.8  # random_crop: a crop's side over the image's short side is from here to 1
    flip_prob: float = 0.5  # horizontal flip
    skip_broken: bool = False  # replace unreadable files by their successor and count them, instead of stopping

    def __post_init__(self) -> None:
        lookup(DATASETS, self.name, "data.name")
        if self.image_size < 8:
            raise ConfigError(f"data.image_size={self.image_size} must be 8 or more")
        if not 0 < self.min_crop_scale <= 1:
            raise ConfigError(f"data.min_crop_scale={self.min_crop_scale} must lie in (0, 1]")
        if not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"data.flip_prob={self.flip_prob} must lie in 0..1")
        if self.num_workers < 0 or self.global_batch_size < 1:
            raise ConfigError("data.num_workers must be 0 or more, data.global_batch_size 1 or more")

    @property
    def augmented(self) -> bool:
        return self.random_crop or self.flip_prob > 0


class ImageSource(Protocol):
    """Images with labels. `image(i)` is PIL RGB of any size; `where(i)` names image i for messages."""

    name: str
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int: ...
    def image(self, index: int) -> Image.Image: ...
    def where(self, index: int) -> str: ...
    def identity(self) -> str:
        """A name that changes when the images do, the same on every machine."""

    def version(self) -> str:
        """Likewise, for files on this machine: it notices any change."""


def _on_disk(name: str) -> Callable[[DataConfig, str], ImageSource]:
    def open_files(config: DataConfig, split: str) -> ImageSource:
        if split == "train":
            return ON_DISK[name](config.root, "data.root", config.skip_broken)
        kind = kind_of(config.val_root) if name == "shards" else name  # beside shards, held-out images may be files
        return ON_DISK[kind](config.val_root, "data.val_root", config.skip_broken)

    return open_files


def _packaged(name: str) -> Callable[[DataConfig, str], ImageSource]:
    return lambda config, split: PACKAGED[name](split)


DATASETS: dict[str, Callable[[DataConfig, str], ImageSource]] = {
    **{name: _on_disk(name) for name in ON_DISK},
    **{name: _packaged(name) for name in PACKAGED},
}


def open_source(config: DataConfig, split: str) -> ImageSource:
    """The `train` or `val` images of a data config."""
    return DATASETS[config.name](config, split)


def has_split(config: DataConfig, split: str) -> bool:
    """Whether the data config names images for `split`."""
    return config.name not in ON_DISK or bool(config.root if split == "train" else config.val_root)


def kind_of(root: str | Path) -> str:
    """The name of the data set that a path holds, by what lies there."""
    return "folder" if has_class_folders(root) else "shards" if is_shards(root) else "loose"


def read_source(source: ImageSource, index: int, skip_broken: bool) -> tuple[Image.Image, int, int]:
    """Image `index`, or with `skip_broken` the next readable one: (image, its index, unreadable ones passed)."""
    for passed in range(len(source)):
        at = (index + passed) % len(source)
        try:
            return source.image(at), at, passed
        except ImageError:
            if not skip_broken:
                raise
            logger.warning("skipped unreadable image %s", source.where(at))
    raise UserError(f"{source.name} holds no readable image")


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
            image = centre_crop(image, config.image_size)
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
    images = torch.stack([image_tensor(centre_crop(image, image_size)) for image, _, _ in read])
    return images, torch.tensor([int(source.labels[at]) for _, at, _ in read])


def centre_batch(
    source: ImageSource, image_size: int, indices: range | np.ndarray, skip_broken: bool = False
) -> Tensor:
    """Centre crops of several images, uint8 (B, 3, image_size, image_size)."""
    return labelled_batch(source, image_size, indices, skip_broken)[0]
