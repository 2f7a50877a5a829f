"""Images in folders: one sub-folder per class (ImageNet layout), or files at any depth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.arithmetic import ceil_div
from engine.data.base import PathKind
from engine.data.images import IMAGE_SUFFIXES, ImageError, read_image
from engine.messages import UserError, logger

HASHED_IMAGES = 2048  # at most so many images enter the identity of a data set with their content
ACCEPTED = f"accepted: {' '.join(sorted(IMAGE_SUFFIXES))}"


def is_image_name(name: str | Path) -> bool:
    """Whether a file name has one of the accepted suffixes."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def identity_of(listing: bytes, count: int, read: Callable[[int], bytes]) -> str:
    """SHA-256 over a listing of all images, and the content of evenly spread ones (all of a small set)."""
    digest = hashlib.sha256(listing)
    for index in range(0, count, ceil_div(count, HASHED_IMAGES)):
        digest.update(read(index))
    return digest.hexdigest()[:16]


def version_of(paths: Sequence[Path]) -> str:
    """Cache key from file modification times. Valid on this machine only."""
    times = "".join(f"{path.stat().st_mtime_ns} " for path in paths)
    return hashlib.sha256(times.encode()).hexdigest()[:16]


class FileSource(PathKind):
    """The common part of the two layouts: one file per image; `paths[i]` is that of image i."""

    name: str
    paths: list[Path]
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        return read_image(self.paths[index])

    def where(self, index: int) -> str:
        return str(self.paths[index])

    def identity(self) -> str:
        """SHA-256 over names and sizes of all files, and the content of evenly spread ones."""
        listing = "".join(f"{path.relative_to(self.name)} {path.stat().st_size}\n" for path in self.paths)
        return identity_of(listing.encode(), len(self), lambda index: self.paths[index].read_bytes())

    def version(self) -> str:
        return version_of(self.paths)


class FolderSource(FileSource):
    """A folder in ImageNet layout: one sub-folder per class, classes and files in alphabetical order.

    Raises UserError for a missing folder or a class folder without images, and ImageError for a file that is not an
    image; with `skip_broken` such files are left out and counted.
    """

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={str(root)!r} is not a folder; give one with a sub-folder per class")
        self.name = str(folder)
        self.class_names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        if not self.class_names:
            raise UserError(f"{key}={str(root)!r} has no class folders (expected one sub-folder of images per class)")

        self.paths = []
        labels: list[int] = []
        num_others = 0
        for label, class_name in enumerate(self.class_names):
            images, others = _list_class(folder / class_name, skip_broken)
            self.paths += images
            labels += [label] * len(images)
            num_others += len(others)
        if num_others:
            logger.warning("%s: left out %d files that are not images", folder, num_others)
        self.labels = np.array(labels, dtype=np.int64)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """A folder with sub-folders, which then are classes."""
        return Path(path).is_dir() and any(entry.is_dir() for entry in Path(path).iterdir())


def _list_class(folder: Path, skip_broken: bool) -> tuple[list[Path], list[Path]]:
    """Lists the image files of one class folder, and all else in it.

    Raises ImageError for anything else without `skip_broken`, and UserError if there are no images.
    """
    entries = sorted(entry.name for entry in os.scandir(folder))
    images = [folder / name for name in entries if is_image_name(name)]
    others = [folder / name for name in entries if not is_image_name(name)]
    if others and not skip_broken:
        raise ImageError(f"{others[0]} is not an image file ({ACCEPTED}); remove it, or set data.skip_broken=true")
    if not images:
        raise UserError(f"class folder {folder} holds no images; remove it or fill it")
    return images, others


class LooseSource(FileSource):
    """All image files under a folder, at any depth, with one label; other files are counted and ignored.

    Raises UserError if the folder is missing or holds no image file.
    """

    has_classes = False

    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={str(root)!r} is not a folder of images")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.name = str(folder)
        self.class_names = ["all"]
        self.paths = [path for path in files if is_image_name(path)]
        if not self.paths:
            raise UserError(f"{key}={str(root)!r} holds no image files ({ACCEPTED})")
        if len(self.paths) < len(files):
            logger.info("%s: %d images; ignored %d others", folder, len(self.paths), len(files) - len(self.paths))
        self.labels = np.zeros(len(self.paths), dtype=np.int64)

    @classmethod
    def holds(cls, path: str | Path) -> bool:
        """Any path: this kind is asked last, and its error says what is missing."""
        return True
