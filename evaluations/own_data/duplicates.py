"""Images that are there more than once: as the same file, or as another file with the same picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evaluations.own_data.scan import ScannedImage


def groups_by(images: Sequence[ScannedImage], key: Callable[[ScannedImage], str]) -> list[list[ScannedImage]]:
    """The groups of two and more images with the same key, in the order of their first image."""
    groups: dict[str, list[ScannedImage]] = {}
    for image in images:
        groups.setdefault(key(image), []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def same_files(images: Sequence[ScannedImage]) -> list[list[str]]:
    """Names of images whose files are equal byte by byte."""
    return [[image.name for image in group] for group in groups_by(images, lambda image: image.file_digest)]


def same_pictures(images: Sequence[ScannedImage]) -> list[list[str]]:
    """Names of images that look the same pixel by pixel, though not all of their files are equal."""
    groups = groups_by(images, lambda image: image.pixel_digest)
    return [[image.name for image in group] for group in groups if len({image.file_digest for image in group}) > 1]


def unique_images(images: Sequence[ScannedImage]) -> list[ScannedImage]:
    """The images that no other one looks like. Equal files have equal pixels."""
    copied = {image.name for group in groups_by(images, lambda image: image.pixel_digest) for image in group}
    return [image for image in images if image.name not in copied]
