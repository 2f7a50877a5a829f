"""The data set `text`: pictures of drawn text, of any size, without a file or a package beside Pillow."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from engine.data.base import SourceConfig, SourceKind, Survey
from engine.data.text_pictures import Purpose, draw_picture, font_facts, heights_of

NUM_TRAINING = 6_000  # pictures of the split `train`
NUM_HELD_OUT = 500  # pictures of the split `val`
SEED = 0


class DrawnText:
    """Pictures of `side` pixels, drawn when they are asked for; the label is the height of the letters."""

    name = "text"

    def __init__(self, purpose: Purpose, count: int, side: int) -> None:
        self.purpose = purpose
        self.side = side
        heights = heights_of(side)
        self.class_names = [f"{height} px" for height in heights]
        self.labels = np.arange(count, dtype=np.int64) % len(heights)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return draw_picture(self.purpose, SEED, index, self.side).image

    def where(self, index: int) -> str:
        return f"{self.name}[{index}] ({self.side} px)"

    def identity(self) -> str:
        """Name, size, and a hash of the first picture: another font or FreeType draws other pixels."""
        return f"{self.name} {self.side} px {len(self)} {self.contents()['first picture']}"

    def version(self) -> str:
        return self.identity()

    def contents(self) -> dict[str, str]:
        """What the pictures depend on beside their number."""
        facts = font_facts(self.side)
        return {
            "first picture": hashlib.sha256(self.image(0).tobytes()).hexdigest()[:16],
            "letters": f"{facts['font']} {facts['font_sizes']}",
        }


class TextKind(SourceKind):
    """6,000 training and 500 held-out pictures of random words, drawn at `data.image_size`.

    Heights of letters take turns: 6 to 32 px at 256 px and above, 8, 12 and 16 px below 128.
    """

    fits_memory = True

    @classmethod
    def open(cls, config: SourceConfig, split: str) -> DrawnText:
        if split == "train":
            return DrawnText("train", NUM_TRAINING, config.image_size)
        return DrawnText("val", NUM_HELD_OUT, config.image_size)

    @classmethod
    def survey(cls, config: SourceConfig, split: str) -> Survey:
        """What `open` says; nothing is drawn."""
        source = cls.open(config, split)
        return Survey(config.name, len(source), source.class_names)
