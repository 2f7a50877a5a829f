"""Pictures of drawn text: random words on a uniform background, with the box of every word.

A picture is a function of (purpose, seed, number, side): no file is read, and the next program draws the same one. The
letters are those of the font that is packaged with Pillow. The words are random letters and digits, so that whoever
reads them back has no dictionary to guess from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL
from PIL import Image

from engine.messages import UserError
from engine.seeds import counter_rng

if TYPE_CHECKING:
    from PIL import ImageFont

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue
MIN_CONTRAST = 100  # levels of 255 by which the luma of text and background differ at least

# The users of a seed, which see no picture of one another.
Purpose = Literal["train", "val", "evaluation", "reader"]
KEYS: dict[Purpose, int] = {"train": 0x7E871, "val": 0x7E872, "evaluation": 0x7E873, "reader": 0x7E874}

# Heights of capitals in pixels, and letters per word (from, to), by the side of the picture.
LARGE_SIDE = 256
SMALL_SIDE = 128  # pixels; below it, heights and words are the small ones
MIN_SIDE = 16  # pixels, in which a letter of the smallest of them fits
LARGE_HEIGHTS = (6, 8, 12, 16, 24, 32)
SMALL_HEIGHTS = (8, 12, 16)
LARGE_WORDS = (3, 6)
SMALL_WORDS = (1, 3)

# Layout, in multiples of the height of capitals unless said.
LINE_PITCH = 1.6
WORD_GAP = 0.8
MAX_LINES = 8
MAX_LINE_WORDS = 4


@dataclass(frozen=True)
class Word:
    """A word of a picture. `box` are its left, upper, right and lower edge in pixels; the last two lie outside."""

    text: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class TextPicture:
    """A picture (side, side) in RGB with its words, all of whose capitals are `height` pixels high."""

    image: Image.Image
    words: tuple[Word, ...]
    height: int


def heights_of(side: int) -> tuple[int, ...]:
    """The heights of capitals in pictures of `side` pixels, in rising order.

    Raises UserError for pictures in which no text fits.
    """
    if side < MIN_SIDE:
        raise UserError(f"drawn text needs pictures of {MIN_SIDE} px or more, not of {side}")
    if side < SMALL_SIDE:
        return tuple(height for height in SMALL_HEIGHTS if height * 2 <= side)
    return tuple(height for height in LARGE_HEIGHTS if height * 8 <= side)


def height_of(number: int, side: int) -> int:
    """The height of capitals in picture `number`: the heights take turns."""
    heights = heights_of(side)
    return heights[number % len(heights)]


def draw_picture(purpose: Purpose, seed: int, number: int, side: int) -> TextPicture:
    """Draws picture `number` of `side` x `side` pixels. Raises UserError as `heights_of` does."""
    from PIL import ImageDraw

    height = height_of(number, side)
    font = font_of(height)
    rng = counter_rng(seed, KEYS[purpose], number)
    ink, ground = _colors(rng)
    image = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(image)

    # Lines stand at equal distances, each with the freedom that is left in its part of the picture.
    margin = max(1, height // 4)
    line_height = LINE_PITCH * height
    num_lines = max(1, min(MAX_LINES, int((side - 2 * margin) / line_height)))
    part = (side - 2 * margin) / num_lines
    words: list[Word] = []
    for line in range(num_lines):
        freedom = max(0.0, part - line_height)
        top = margin + line * part + rng.random() * freedom
        baseline = round(top + (line_height + height) / 2)
        for text, left in _line(rng, font, side, margin, height):
            box = draw.textbbox((left, baseline), text, font=font, anchor="ls")
            draw.text((left, baseline), text, fill=ink, font=font, anchor="ls")
            words.append(Word(text, _inside(box, side)))
    return TextPicture(image, tuple(words), height)


def _line(
    rng: np.random.Generator, font: ImageFont.FreeTypeFont, side: int, margin: int, height: int
) -> list[tuple[str, int]]:
    """(word, left edge) of the words of a line; one at least."""
    # Words as long as they fit. A first word that is wider than the picture is drawn again.
    room = side - 2 * margin
    gap = WORD_GAP * height
    widths: list[float] = []
    texts: list[str] = []
    while len(texts) < MAX_LINE_WORDS:
        text = _word(rng, side)
        width = font.getlength(text)
        if sum(widths) + width + len(texts) * gap > room:
            if texts:
                break
            continue
        texts.append(text)
        widths.append(width)

    # What is left of the line is dealt to the gaps at random, the last of which is behind the last word.
    rest = room - sum(widths) - (len(texts) - 1) * gap
    shares = rng.dirichlet(np.ones(len(texts) + 1)) * rest
    placed = []
    left = float(margin)
    for text, width, share in zip(texts, widths, shares, strict=False):
        left += share
        placed.append((text, int(left)))
        left += width + gap
    return placed


def _word(rng: np.random.Generator, side: int) -> str:
    """Random letters and digits, all equally likely."""
    shortest, longest = SMALL_WORDS if side < SMALL_SIDE else LARGE_WORDS
    count = int(rng.integers(shortest, longest + 1))
    return "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), count))


def _colors(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(color of the text, color of the background), whose lumas differ by `MIN_CONTRAST` or more."""
    while True:
        ink, ground = rng.integers(0, 256, (2, 3)).tolist()
        if abs(np.dot(LUMA, ink) - np.dot(LUMA, ground)) >= MIN_CONTRAST:
            return tuple(ink), tuple(ground)


def _inside(box: Sequence[float], side: int) -> tuple[int, int, int, int]:
    """The box as whole pixels of the picture."""
    left, top, right, bottom = (min(side, max(0, round(edge))) for edge in box)
    return left, top, right, bottom


# ------------------------------------------------------------------------------------------------ the font
@lru_cache
def font_of(height: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, at the smallest size whose H is `height` pixels high or more.

    Raises UserError where Pillow was built without FreeType, which draws the font.
    """
    from PIL import ImageFont, features

    if not features.check("freetype2"):
        raise UserError("drawn text needs a Pillow with FreeType (this one was built without it): reinstall pillow")
    size = height
    while True:
        # The basic layout: the other one is there on some machines only, and moves letters.
        font = ImageFont.load_default(size).font_variant(layout_engine=ImageFont.Layout.BASIC)
        _, top, _, bottom = font.getbbox("H")
        if bottom - top >= height:
            return font
        size += 1


def font_facts(side: int) -> dict[str, Any]:
    """What a protocol says about the letters in pictures of `side` pixels: font, sizes, and measured heights."""
    from PIL import features

    fonts = {height: font_of(height) for height in heights_of(side)}
    name = " ".join(next(iter(fonts.values())).getname())
    boxes = {height: font.getbbox("H") for height, font in fonts.items()}
    return {
        "font": name,
        "font_sizes": [int(font.size) for font in fonts.values()],
        "measured_heights": [int(bottom - top) for _, top, _, bottom in boxes.values()],
        "pillow": PIL.__version__,
        "freetype": features.version("freetype2"),
    }
