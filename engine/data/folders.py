"""Images in folders: one sub-folder per class (ImageNet layout), or image files at any depth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data.images import IMAGE_SUFFIXES, ImageError, read_image
from engine.messages import UserError, logger

HASHED_IMAGES = 2048  # whose content enters the identity of a data set


def has_class_folders(root: str | Path) -> bool:
    """Whether a folder has sub-folders, which then are classes."""
    return Path(root).is_dir() and any(entry.is_dir() for entry in Path(root).iterdir())


def identity_of(listing: bytes, count: int, read: Callable[[int], bytes]) -> str:
    """SHA-256 over a listing of all images, and the content of evenly spread ones (all of a small set)."""
    digest = hashlib.sha256(listing)
    for index in range(0, count, -(-count // HASHED_IMAGES)):
        digest.update(read(index))
    return digest.hexdigest()[:16]


def version_of(paths: Sequence[Path]) -> str:
    """A name that changes when any of the files is written anew; it is that of this machine alone."""
    times = "".join(f"{path.stat().st_mtime_ns} " for path in paths)
    return hashlib.sha256(times.encode()).hexdigest()[:16]


class FolderSource:
    """A folder in ImageNet layout: one sub-folder per class, classes and files in alphabetical order.

    A missing folder, a class folder without images, or a file that is not an image is an error that names it; with
    `skip_broken` such files are left out and counted.
    """

    def __init__(self, root: str, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={root!r} is not a folder; give one with a sub-folder per class")
        self.name = str(folder)
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
                strangers += len(entries) - len(kept)
                if not skip_broken:
                    raise ImageError(
                        f"{folder / class_name / min({*entries} - {*kept})} is not an image file "
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
        listing = "".join(f"{path.relative_to(self.name)} {path.stat().st_size}\n" for path in self.paths)
        return identity_of(listing.encode(), len(self), lambda index: self.paths[index].read_bytes())

    def version(self) -> str:
        return version_of(self.paths)


class LooseSource(FolderSource):
    """All image files under a folder, at any depth, with one label; other files are counted and ignored."""

    def __init__(self, root: str, key: str, skip_broken: bool = False) -> None:
        folder = Path(root)
        if not root or not folder.is_dir():
            raise UserError(f"{key}={str(root)!r} is not a folder of images")
        self.name, self.class_names = str(folder), ["all"]
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        self.paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        if not self.paths:
            raise UserError(f"{key}={str(root)!r} holds no image files (accepted: {' '.join(sorted(IMAGE_SUFFIXES))})")
        if len(self.paths) < len(files):
            logger.info("%s: %d images; ignored %d others", folder, len(self.paths), len(files) - len(self.paths))
        self.labels = np.zeros(len(self.paths), dtype=np.int64)
