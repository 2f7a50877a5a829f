"""What a source of images is, and what a kind of source says of itself.

`ImageSource` is the contents: images, labels and names of one split. `SourceKind` is how a config gets there: which
keys it needs, how a split is opened, and what may be assumed of its images. Kinds are registered by name in
`engine.data.sources.SOURCES`; a plug-in adds one class:

    class Video(SourceKind):
        config_class = VideoConfig                      # becomes the section `data.video`

        @classmethod
        def open(cls, config, split):
            return VideoFrames(config.video.files, split)    # an ImageSource

    SOURCES["video"] = Video
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from engine.counts import counted
from engine.data.decoding import DEFAULT_DECODING, Decoding
from engine.messages import UserError

COUNTED_LABELS = 2**20  # at a time


class SourceConfig(Protocol):
    """The part of a data config that a kind of source needs; see `engine.data.config.DataConfig`."""

    name: str
    root: str  # path of the training images; empty for kinds that need none
    val_root: str  # path of the held-out images; empty = none
    held_out: str  # file that lists held-out images of `root` instead; empty = none
    skip_broken: bool
    fast_decode: bool
    decoding: Decoding  # how stored pixels become RGB
    image_size: int  # pixels, side of the square crop: the size of images that a kind draws


class ImageSource(Protocol):
    """The labeled images of one split, by number."""

    name: str  # a path, or the name of a packaged set
    labels: np.ndarray  # integers (N,); mapped from a file where the set is large
    class_names: list[str]  # by label

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Image `index` as PIL RGB, of any size. Raises ImageError if it cannot be decoded."""

    def where(self, index: int) -> str:
        """Names image `index` for messages."""

    def identity(self) -> str:
        """Content hash of the data set, equal on every machine."""

    def version(self) -> str:
        """Cheap cache key from modification times; local to this machine."""


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images have each label: int64 (num_classes,).

    In pieces: labels of a large set are mapped from a file, and counting them at once would copy them.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for start in range(0, len(labels), COUNTED_LABELS):
        counts += np.bincount(labels[start : start + COUNTED_LABELS], minlength=num_classes)
    return counts


def replaced_images(source: ImageSource) -> set[int]:
    """The unreadable images of a source in whose place others were read by this process: of any kind of source.

    Whoever reads adds to the set; it lives as long as the source, which need not know of it.
    """
    if not hasattr(source, "replaced"):
        source.replaced = set()
    return source.replaced


@dataclass(frozen=True)
class Survey:
    """What a look at the images of a split shows without decoding one; None where only opening it would tell."""

    name: str  # a path, or the name of a packaged set
    num_images: int | None = None
    class_names: list[str] | None = None  # by label
    classes_are_named: bool = True  # False: the names are only numbers

    def text(self) -> str:
        """For people."""
        counts = []
        if self.num_images is not None:
            counts.append(counted(self.num_images, "image"))
        if self.class_names is not None:
            counts.append(counted(len(self.class_names), "class", "classes"))
        return f"{self.name} ({', '.join(counts)})" if counts else self.name


class SourceKind(ABC):
    """A kind of image source: facts about it, and how to open a split.

    Registries hold the class itself; its facts are class attributes, and nobody needs an instance to ask for them.
    """

    config_class: ClassVar[type | None] = None  # dataclass of its own section `data.<name>`, if it has one
    needs_root: ClassVar[bool] = False  # opened from data.root and data.val_root, which may be empty
    decodes_files: ClassVar[bool] = False  # its images are files of the user's, decoded as the config says
    lists_held_out: ClassVar[bool] = False  # data.held_out may list held-out images by the names of their files
    has_classes: ClassVar[bool] = True  # False: all images have one label
    mixed_held_out: ClassVar[bool] = False  # data.val_root may hold images of any other kind
    fits_memory: ClassVar[bool] = False  # so few images that features of all of them may be cached
    attribution: ClassVar[str] = ""  # who made the images, where that must be said

    @classmethod
    @abstractmethod
    def open(cls, config: SourceConfig, split: str) -> ImageSource:
        """Opens the images of `split`, `train` or `val`.

        Raises UserError if they are not there or not as expected.
        """

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """Looks whether the images of `split` are there, by listings and headers alone.

        Raises UserError if they are not. A kind that does not say how is found to be ready.
        """
        return Survey(config.name)

    @classmethod
    def has_split(cls, config: SourceConfig, split: str) -> bool:
        """Whether a config names images for `split`; held-out images are optional."""
        return not cls.needs_root or bool(cls.root(config, split))

    @classmethod
    def root(cls, config: SourceConfig, split: str) -> str:
        """The path of a split in a config; empty = none."""
        return config.root if split == "train" else config.val_root

    @classmethod
    def root_key(cls, split: str) -> str:
        """The config key of that path, for messages."""
        return "data.root" if split == "train" else "data.val_root"


class PathKind(SourceKind):
    """A kind of source that lies under one path per split; its instances are the contents.

    The constructor takes the path, the config key or flag that named it (for messages), and `skip_broken`. A kind that
    `decodes_files` does so by `self.decoding`, which also enters `identity` and `version` (`Decoding.suffix`).
    """

    needs_root = True
    decoding: Decoding = DEFAULT_DECODING
    num_hidden: int = 0  # hidden names that were left out

    # What the pre-flight listed and nobody opened yet: a large set on a network disk takes minutes to list.
    surveyed: ClassVar[dict[Hashable, PathKind]] = {}

    @classmethod
    def _place(cls, config: SourceConfig, split: str) -> Hashable:
        """What decides the contents of a split, but for its files."""
        root = cls.root(config, split)
        return cls, split, str(root), Path(root).absolute(), config.skip_broken, config.held_out

    @classmethod
    def require(cls, root: str | Path, key: str) -> None:
        """Raises UserError if nothing of this kind can be at a path, by a short look; `key` named it."""

    @classmethod
    def build_index(cls, root: str | Path, key: str, skip_broken: bool = False) -> Path:
        """Writes an index of the images, which the next starts use instead of looking them up; returns its file.

        `key` is the flag that named `root`, for messages. Raises UserError for a kind that has none.
        """
        raise UserError(f"{key}={str(root)!r}: images of this kind need no index")

    def is_current(self) -> bool:
        """Whether what was listed still holds, as far as it is cheap to see; False has it listed again."""
        return False

    @abstractmethod
    def __init__(self, root: str | Path, key: str, skip_broken: bool = False) -> None: ...

    @classmethod
    @abstractmethod
    def holds(cls, path: str | Path) -> bool:
        """Whether `path` looks like images of this kind: for commands that name a path without a kind."""

    def take_split(self, config: SourceConfig, split: str) -> None:
        """Keeps the images of a split, where both splits lie under one path. Most kinds have a path for each."""

    @classmethod
    def open(cls, config: SourceConfig, split: str) -> ImageSource:
        source = PathKind.surveyed.pop(cls._place(config, split), None)
        if source is None or not source.is_current():
            key = cls.root_key("train" if config.held_out else split)
            source = cls(cls.root(config, split), key, config.skip_broken)
            source.take_split(config, split)
        if cls.decodes_files:
            source.decoding = config.decoding
        return source

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """Opens the split, which for most kinds of path is a listing; hands it on to the next `open` of the split."""
        place = cls._place(config, split)
        PathKind.surveyed.pop(place, None)
        source = cls.open(config, split)
        if source.is_current():
            PathKind.surveyed[place] = source
        return Survey(source.name, len(source), source.class_names, getattr(source, "classes_are_named", True))
