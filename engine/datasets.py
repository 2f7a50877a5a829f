"""Image data sets: a folder in ImageNet layout, or a set that a package ships; and how an image becomes a training
sample.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from engine.config import ConfigError, UserError, logger, lookup
from engine.images import IMAGE_SUFFIXES, ImageError, centre_crop, image_tensor, random_crop, read_image
from engine.packaged import PACKAGED
from engine.stream import position_rng

HASHED_FILES = 2048  # whose content enters the identity of a folder


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where images come from and how they are cropped."""

    name: str = "folder"  # folder | loose (one label for all) | mnist5k | twemoji | photos
    root: str = ""  # folder: one sub-folder per class (ImageNet layout); loose: image files at any depth
    val_root: str = ""  # held-out images of the same layout; empty = no validation
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


class FolderSource:
    """A folder in ImageNet layout: one sub-folder per class, classes and files in alphabetical order.

    A missing folder, a class folder without images, or a file that is not an image is an error that names it; with
    `skip_broken` such files are left out and counted.
    """

    def __init__(self, root: str, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={root!r} is not a folder; give one with a sub-folder per class")
        self.name, self.skip_broken = str(folder), skip_broken
        self.class_names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not self.class_names:
            raise UserError(f"{key}={root!r} has no class folders (expected one sub-folder of images per class)")
        self.paths: list[Path] = []
        labels: list[int] = []
        strangers = 0
        for label, class_name in enumerate(self.class_names):
            entries = sorted(entry.name for entry in os.scandir(folder / class_name))
            kept = [name for name in entries if Path(name).suffix.lower() in IMAGE_SUFFIXES]
            if len(kept) != len(entries):
                stranger = next(name for name in entries if name not in kept)
                strangers += len(entries) - len(kept)
                if not skip_broken:
                    raise ImageError(
                        f"{folder / class_name / stranger} is not an image file "
                        f"(accepted: {' '.join(sorted(IMAGE_SUFFIXES))}); remove it, or set data.skip_broken=true"
                    )
            if not kept:
                raise UserError(f"class folder {folder / class_name} holds no images; remove it or fill it")
            self.paths += [folder / class_name / name for name in kept]
            labels += [label] * len(kept)
        if strangers:
            logger.warning("%s: left out %d files that are not images", folder, strangers)
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def identity(self) -> str:
        """SHA-256 over names and sizes of all files, and the content of evenly spread ones (all of a small set)."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(f"{path.relative_to(self.name)} {path.stat().st_size}\n".encode())
        for path in self.paths[:: -(-len(self.paths) // HASHED_FILES)]:
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def version(self) -> str:
        """A name that changes when any file is written anew; it is that of this machine alone."""
        times = "".join(f"{path.stat().st_mtime_ns} " for path in self.paths)
        return hashlib.sha256(times.encode()).hexdigest()[:16]


class LooseSource(FolderSource):
    """All image files under a folder, at any depth, with one label; other files are counted and ignored."""

    def __init__(self, root: str, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={str(root)!r} is not a folder of images")
        self.name, self.skip_broken, self.class_names = str(folder), skip_broken, ["all"]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        self.paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        if not self.paths:
            raise UserError(f"{key}={str(root)!r} holds no image files (accepted: {' '.join(sorted(IMAGE_SUFFIXES))})")
        if len(self.paths) < len(files):
            ignored = len(files) - len(self.paths)
            logger.info("%s: %d images; ignored %d other files", folder, len(self.paths), ignored)
        self.labels = np.zeros(len(self.paths), dtype=np.int64)


def _folder(kind: type[FolderSource]) -> Callable[[DataConfig, str], ImageSource]:
    def open_folder(config: DataConfig, split: str) -> ImageSource:
        root, key = (config.root, "data.root") if split == "train" else (config.val_root, "data.val_root")
        return kind(root, key, config.skip_broken)

    return open_folder


def _packaged(name: str) -> Callable[[DataConfig, str], ImageSource]:
    return lambda config, split: PACKAGED[name](split)


DATASETS: dict[str, Callable[[DataConfig, str], ImageSource]] = {
    "folder": _folder(FolderSource),
    "loose": _folder(LooseSource),
    **{name: _packaged(name) for name in PACKAGED},
}


def open_source(config: DataConfig, split: str) -> ImageSource:
    """The `train` or `val` images of a data config."""
    return DATASETS[config.name](config, split)


def has_split(config: DataConfig, split: str) -> bool:
    """Whether the data config names images for `split`."""
    return config.name not in ("folder", "loose") or bool(config.root if split == "train" else config.val_root)


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
