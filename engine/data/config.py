"""Where images come from and how they are cropped, as a config."""

from __future__ import annotations

from dataclasses import dataclass

from engine.data.sources import DATASETS
from engine.messages import ConfigError
from engine.registry import lookup


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
