"""The `data` section of a config: where images come from and how they are cropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.data.base import SourceKind
from engine.data.decoding import Decoding
from engine.data.sources import SOURCES
from engine.validation import Problem, Section, at_least, in_range, one_of


@dataclass(kw_only=True, slots=True)
class DataConfig(Section):
    """Images of a training run: kind of source, paths, crop, batches and loader."""

    REGISTRY: ClassVar[Mapping[str, type[SourceKind]]] = SOURCES

    name: str = "folder"  # kind of source; engine/data/sources.py lists them
    root: str = ""  # folder: a sub-folder per class; loose: files at any depth; the others: see docs/data.md
    val_root: str = ""  # held-out images of the same layout (shards: or of any); empty = no validation
    held_out: str = ""  # in place of val_root: a file with the names of held-out images of data.root, one per line
    image_size: int = 256  # pixels, side of the square crop
    global_batch_size: int = 256  # images per step, over all ranks and micro-batches
    num_workers: int = 8  # loader processes per rank; 0 = in the training process
    random_crop: bool = True  # ADM random crop; false = center crop
    min_crop_scale: float = 0.8  # random_crop: a crop's side over the image's short side is from here to 1
    flip_prob: float = 0.5  # probability of a horizontal flip
    background: Literal["white", "black"] = "white"  # what stands behind transparent pixels
    fast_decode: bool = False  # training samples in half the time, with slightly other pixels; see docs/data.md
    orientation: Literal["as_stored", "upright"] = "as_stored"  # upright: follow EXIF, which published recipes do not
    accept_changed: bool = False  # resume although files or classes are others than those of the checkpoint
    skip_broken: bool = False  # replace unreadable files by their successor and count them, instead of stopping

    def problems(self) -> Iterator[Problem]:
        """Values out of range, and a kind of source that does not exist."""
        yield from one_of(self, "name", SOURCES)
        if self.held_out and self.val_root:
            yield Problem("held_out", self.held_out, "empty where data.val_root names the held-out images")
        yield from at_least(self, "image_size", 8)
        yield from at_least(self, "global_batch_size", 1)
        yield from at_least(self, "num_workers", 0)
        yield from in_range(self, "min_crop_scale", 0, 1, open_left=True)
        yield from in_range(self, "flip_prob", 0, 1)

    @property
    def decoding(self) -> Decoding:
        """How stored pixels become RGB."""
        return Decoding(self.background, self.orientation)

    @property
    def augmented(self) -> bool:
        """Whether a sample depends on more than its image."""
        return self.random_crop or self.flip_prob > 0
