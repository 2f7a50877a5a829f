"""A foreign image source: bright squares and discs on noise, drawn when they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from engine.data.base import SourceKind
from engine.data.sources import SOURCES
from engine.validation import Problem, Section, at_least


@dataclass(kw_only=True, slots=True)
class ShapesConfig(Section):
    """How many images, and how large."""

    num_images: int = 24  # images per split
    size: int = 16  # pixels per side

    def problems(self) -> Iterator[Problem]:
        yield from at_least(self, "num_images", 4)
        yield from at_least(self, "size", 8)


class Shapes:
    """See `engine.data.base.ImageSource`. Image i is a function of the split and of i."""

    class_names = ["square", "disc"]

    def __init__(self, config: ShapesConfig, split: str) -> None:
        self.config = config
        self.split = split
        self.name = f"shapes-{split}"
        self.labels = np.arange(config.num_images, dtype=np.int64) % 2

    def __len__(self) -> int:
        return self.config.num_images

    def image(self, index: int) -> Image.Image:
        rng = np.random.default_rng([index, self.split == "val"])
        size = self.config.size
        pixels = rng.integers(0, 90, (size, size, 3), dtype=np.uint8)
        rows, columns = np.mgrid[:size, :size] - rng.integers(size // 3, size - size // 3, (2, 1, 1))
        distance = np.hypot(rows, columns) if self.labels[index] else np.maximum(abs(rows), abs(columns))
        pixels[distance <= size // 4] = rng.integers(150, 256, 3, dtype=np.uint8)
        return Image.fromarray(pixels)

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def identity(self) -> str:
        return f"{self.name} {self.config.num_images} {self.config.size}"

    def version(self) -> str:
        return self.identity()


class ShapesKind(SourceKind):
    """`data.name=shapes`."""

    config_class = ShapesConfig
    fits_memory = True

    @classmethod
    def open(cls, config, split: str) -> Shapes:
        return Shapes(config.shapes, split)


SOURCES["shapes"] = ShapesKind
