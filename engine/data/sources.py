"""Image data sets by name: folders, tar files, or a set that a package ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from engine.data.folders import FolderSource, LooseSource, has_class_folders
from engine.data.images import ImageError
from engine.data.packaged import PACKAGED
from engine.data.shards import ShardSource, is_shards
from engine.messages import UserError, logger

if TYPE_CHECKING:
    from engine.data.config import DataConfig

ON_DISK: dict[str, type] = {"folder": FolderSource, "loose": LooseSource, "shards": ShardSource}


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
