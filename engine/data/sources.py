"""The kinds of image sources by name, and how the images that a config or a path names are opened.

`data.name` of a config picks from `SOURCES`. Nobody else compares names: what a kind needs or may be assumed of it is
an attribute of its class (`engine.data.base.SourceKind`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from engine.counts import counted
from engine.data.base import ImageSource, PathKind, SourceConfig, SourceKind, Survey, class_counts, replaced_images
from engine.data.decoding import DEFAULT_DECODING
from engine.data.folders import FolderSource, LooseSource
from engine.data.images import ImageError
from engine.data.nested_tar import NestedTarSource
from engine.data.packaged import Mnist5k, Photos, Twemoji
from engine.data.parquet import ParquetSource
from engine.data.shards import ShardSource
from engine.data.text_source import TextKind
from engine.messages import UserError, logger
from engine.registry import lookup, selected_section
from engine.validation import raise_problems

# A path is offered to the last kind first (`kind_of`): plug-ins come before those here, and `loose` takes what is left.
SOURCES: dict[str, type[SourceKind]] = {
    "loose": LooseSource,
    "shards": ShardSource,
    "nested_tar": NestedTarSource,
    "parquet": ParquetSource,
    "folder": FolderSource,
    "mnist5k": Mnist5k,
    "twemoji": Twemoji,
    "photos": Photos,
    "text": TextKind,
}


def source_names(*, packaged_only: bool = False) -> str:
    """The names of all kinds, or of those that need no path, for help texts."""
    return ", ".join(sorted(name for name, kind in SOURCES.items() if not (packaged_only and kind.needs_root)))


def attribution_of(name: str) -> str:
    """Who made the images of a kind, where that must be said; empty for others, and for unknown names."""
    return SOURCES[name].attribution if name in SOURCES else ""


class Counted(Protocol):
    """What has labels, by class name: a source, or codes."""

    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int: ...


def open_source(config: SourceConfig, split: str) -> ImageSource:
    """Opens the `train` or `val` images of a data config.

    Raises ConfigError for an unknown kind, or a section or path that it does not use, and UserError if the images are
    not there.
    """
    return _kind_of_split(config, split).open(config, split)


def survey_source(config: SourceConfig, split: str) -> Survey:
    """Looks whether the images of a data config are there, without reading one. Raises as `open_source` does."""
    return _kind_of_split(config, split).survey(config, split)


def _kind_of_split(config: SourceConfig, split: str) -> type[SourceKind]:
    """The kind that opens a split. Raises ConfigError for an unknown one, or a section or path that it does not use."""
    selected_section(config, SOURCES, "data")
    raise_problems(list(unused_keys(config)))
    kind = SOURCES[config.name]
    if split == "val" and kind.mixed_held_out:
        kind = SOURCES[kind_of(kind.root(config, split))]
    return kind


def keys_without_use(kind: type[SourceKind]) -> dict[str, str | bool]:
    """{key: default} of a data config's keys that a kind of source has no use for."""
    keys = {} if kind.needs_root else {"root": "", "val_root": ""}
    if not kind.lists_held_out:
        keys["held_out"] = ""
    return keys if kind.decodes_files else keys | asdict(DEFAULT_DECODING) | {"fast_decode": False}


def unused_keys(config: SourceConfig) -> Iterator[str]:
    """The keys of a data config that are set although its kind has no use for them: one line of an error per key."""
    if config.name not in SOURCES:
        return
    for key, default in keys_without_use(SOURCES[config.name]).items():
        value = getattr(config, key)
        if value != default:
            users = sorted(name for name, kind in SOURCES.items() if key not in keys_without_use(kind))
            yield (
                f"data.{key}={value!r} is set, but data.name={config.name!r} does not use it; "
                f"leave out data.{key}, or set data.name to one of: {', '.join(users)}"
            )


def exact_pixel_problems(config: SourceConfig) -> Iterator[str]:
    """What is wrong with the data config of a measurement, which must see the pixels of the published protocols."""
    if config.fast_decode:
        yield (
            "data.fast_decode=true is for the training of tokenizers: measurements follow published protocols, whose "
            "pixels are exact; leave it out"
        )


def summary_of(source: Counted) -> str:
    """Says for a start line how many images and classes a source (or codes) has, and what is missing there."""
    num_hidden = getattr(source, "num_hidden", 0)  # sources without files have none
    hidden = f" ({counted(num_hidden, 'hidden name')} left out)" if num_hidden else ""
    counts = class_counts(source.labels, len(source.class_names))
    empty = [str(source.class_names[label]) for label in np.flatnonzero(counts == 0)]
    without = f", {len(empty):,} of them without an image (such as {empty[0]})" if empty else ""
    images, classes = counted(len(source), "training image"), counted(len(source.class_names), "class", "classes")
    return f"{images} of {classes}{without}{hidden}"


def open_path(path: str | Path, key: str, skip_broken: bool = False) -> ImageSource:
    """Opens the images under a path, whatever kind they are.

    `key` is the flag that named the path, for messages. Raises UserError if there are none.
    """
    return SOURCES[kind_of(path)](path, key, skip_broken)


def has_split(config: SourceConfig, split: str) -> bool:
    """Whether the data config names images for `split`. Raises ConfigError for an unknown kind."""
    return lookup(SOURCES, config.name, "data.name").has_split(config, split)


def kind_of(path: str | Path) -> str:
    """The name of the kind that holds a path, by what lies there; `loose` where nothing else fits."""
    for name in reversed(SOURCES):
        kind = SOURCES[name]
        if issubclass(kind, PathKind) and kind.holds(path):
            return name
    raise UserError(f"{path} holds images of no known kind: {source_names()}")


def log_replaced(source: ImageSource) -> None:
    """Says at the end of an evaluation how many images of this process were replaced by the next readable ones."""
    replaced = replaced_images(source)
    if replaced:
        logger.warning(
            "%s: %d images could not be read; the next readable ones took their place", source.name, len(replaced)
        )


def read_source(source: ImageSource, index: int, skip_broken: bool) -> tuple[Image.Image, int, int]:
    """Reads image `index`, or with `skip_broken` the next readable one, and names an unreadable one when first met.

    Returns (image, its index, number of unreadable ones passed). Raises ImageError if the image cannot be read, and
    UserError if no image of the source can be.
    """
    for num_passed in range(len(source)):
        candidate = (index + num_passed) % len(source)
        try:
            image = source.image(candidate)
        except ImageError:
            if not skip_broken:
                raise
            # Once for each file: a small set is read hundreds of times.
            if candidate not in replaced_images(source):
                logger.warning("skipped unreadable image %s", source.where(candidate))
            continue
        if num_passed:
            replaced_images(source).add(index)
        return image, candidate, num_passed
    raise UserError(f"{source.name} holds no readable image")
