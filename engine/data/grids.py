"""Grids of images as one picture for people: at a readable scale, with a caption above, and with names beside rows and
below images.

Numbers never come from grids: readers of image folders leave them out (`engine.outputs.listed_images`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from engine.arithmetic import ceil_div
from engine.data.images import to_pil, to_uint8

if TYPE_CHECKING:
    from PIL import ImageFont

WHITE = 255
PADDING = 2  # pixels around an image, before it is enlarged
READABLE_SIDE = 96  # pixels; smaller images are enlarged to about this side

# Names, in pixels.
FONT_SIZE = 14
LINE_HEIGHT = 18
MARGIN = 6
ROW_NAME_WIDTH = 150  # at most
MAX_LINES = 2  # of a name
MAX_CAPTION_LINES = 6
MIN_CAPTION_WIDTH = 320  # pixels; a narrower grid gets room at its right
INK = (31, 41, 51)


class GridWriter(Protocol):
    """Writes a grid of images (B,3,H,W) in [-1,1] under a name, with names beside its rows and a caption above."""

    def __call__(
        self, name: str, images: Tensor, columns: int, row_names: Sequence[str] = (), caption: str = ""
    ) -> None: ...


def zoom_of(images: Tensor | np.ndarray) -> int:
    """The whole factor by which images (...,H,W) are enlarged to be seen well."""
    return max(1, READABLE_SIDE // images.shape[-1])


def make_grid(images: Tensor, columns: int, padding: int = PADDING) -> Tensor:
    """Arranges (B,3,H,W) in [-1,1] row by row as uint8 (3, rows*(H+padding)+padding, ...) with white gaps."""
    tiles = to_uint8(images.detach().cpu())
    num_tiles, channels, height, width = tiles.shape
    columns = min(columns, num_tiles)
    rows = ceil_div(num_tiles, columns)

    grid_height = rows * (height + padding) + padding
    grid_width = columns * (width + padding) + padding
    grid = tiles.new_full((channels, grid_height, grid_width), WHITE)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        top = row * (height + padding) + padding
        left = column * (width + padding) + padding
        grid[:, top : top + height, left : left + width] = tile
    return grid


def save_grid(
    path: str | Path,
    images: Tensor,
    columns: int,
    *,
    row_names: Sequence[str] = (),
    image_names: Sequence[str] = (),
    caption: str = "",
    zoom: int | None = None,
) -> None:
    """Writes a grid of images (B,3,H,W) in [-1,1] as PNG.

    `row_names` stand at the left of the rows, `image_names` below the images; both may be shorter than the grid. The
    `caption` above it says what the images are, for whoever finds the picture without the page around it. Pixels are
    repeated `zoom` times, by default as often as small images need (`zoom_of`).

    Raises NonFiniteValuesError for pixels that are not finite.
    """
    zoom = zoom or zoom_of(images)
    columns = min(columns, len(images))
    tile_width = zoom * (images.shape[-1] + PADDING)

    # One picture per row, from the gap above it to its names.
    rows = []
    for start in range(0, len(images), columns):
        row = _enlarged(make_grid(images[start : start + columns], columns)[:, :-PADDING], zoom)
        if image_names:
            row = _with_names_below(row, image_names[start : start + columns], tile_width, zoom * PADDING)
        rows.append(row)
    if row_names:
        rows = _with_names_beside(rows, row_names)

    grid = _stacked(rows, zoom * PADDING)
    if caption:
        grid = _with_caption(grid, caption)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def _enlarged(grid: Tensor, zoom: int) -> Image.Image:
    """A grid uint8 (3,H,W) as a picture, each pixel `zoom` x `zoom` times."""
    picture = to_pil(grid)
    if zoom == 1:
        return picture
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _stacked(rows: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures below each other, flush left on white, with a gap at the end."""
    stack = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows) + gap), "white")
    top = 0
    for row in rows:
        stack.paste(row, (0, top))
        top += row.height
    return stack


# ------------------------------------------------------------------------------------------------ names
def _with_caption(grid: Image.Image, caption: str) -> Image.Image:
    """A grid with a caption above it, in as many lines as its width needs."""
    from PIL import ImageDraw

    font = _font()
    width = max(grid.width, MIN_CAPTION_WIDTH)
    lines = _lines(caption, width - 2 * MARGIN, font, MAX_CAPTION_LINES)
    height = len(lines) * LINE_HEIGHT + 2 * MARGIN
    picture = Image.new("RGB", (width, height + grid.height), "white")
    picture.paste(grid, (0, height))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + number * LINE_HEIGHT), line, fill=INK, font=font)
    return picture


def _with_names_below(row: Image.Image, names: Sequence[str], tile_width: int, left: int) -> Image.Image:
    """A row of images with a strip for their names below it."""
    from PIL import ImageDraw

    font = _font()
    picture = Image.new("RGB", (row.width, row.height + MAX_LINES * LINE_HEIGHT + MARGIN), "white")
    picture.paste(row, (0, 0))
    draw = ImageDraw.Draw(picture)
    for number, name in enumerate(names):
        for line, text in enumerate(_lines(name, tile_width - MARGIN, font)):
            place = (left + number * tile_width, row.height + MARGIN // 2 + line * LINE_HEIGHT)
            draw.text(place, text, fill=INK, font=font)
    return picture


def _with_names_beside(rows: Sequence[Image.Image], names: Sequence[str]) -> list[Image.Image]:
    """Rows of images with a column for their names at the left, as wide as the longest needs."""
    from PIL import ImageDraw

    font = _font()
    texts = [_lines(name, ROW_NAME_WIDTH, font) for name in names[: len(rows)]]
    width = max((_width(text, font) for lines in texts for text in lines), default=0) + 2 * MARGIN
    pictures = []
    for number, row in enumerate(rows):
        picture = Image.new("RGB", (width + row.width, row.height), "white")
        picture.paste(row, (width, 0))
        lines = texts[number] if number < len(texts) else []
        top = max(0, (row.height - len(lines) * LINE_HEIGHT) // 2)
        draw = ImageDraw.Draw(picture)
        for line, text in enumerate(lines):
            draw.text((MARGIN, top + line * LINE_HEIGHT), text, fill=INK, font=font)
        pictures.append(picture)
    return pictures


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, at its one small size where Pillow was built without FreeType."""
    from PIL import ImageFont, features

    return ImageFont.load_default(FONT_SIZE if features.check("freetype2") else None)


def _lines(
    name: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_lines: int = MAX_LINES
) -> list[str]:
    """A name in at most `max_lines` lines of `width` pixels; what is left out becomes three dots."""
    words = _drawable(name, font).split()
    lines: list[str] = []
    while words and len(lines) < max_lines:
        # As many words as fit, but one at least.
        count = 1
        while count < len(words) and _width(" ".join(words[: count + 1]), font) <= width:
            count += 1
        is_last = len(lines) == max_lines - 1 and count < len(words)
        lines.append(_cut(" ".join(words[:count]), width, font, is_last))
        words = words[count:]
    return lines


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, is_cut: bool) -> str:
    """A text that fits, with three dots where it `is_cut` or too long."""
    if not is_cut and _width(text, font) <= width:
        return text
    while text and _width(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."


def _drawable(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A name with spaces for control characters; with the small font, what is not Latin-1 becomes escapes.

    The larger font has few letters beside those of English: others become their base letter, or a question mark.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    is_small_font = not hasattr(font, "getmask2")
    if is_small_font:
        return text.encode("latin-1", "backslashreplace").decode("latin-1")
    missing = bytes(font.getmask(chr(0xFFFF)))
    return "".join(_known_letter(letter, font, missing) for letter in unicodedata.normalize("NFC", text))


def _known_letter(letter: str, font: ImageFont.FreeTypeFont, missing: bytes) -> str:
    """The letter, or the first of its parts that the font has; `missing` is the box in the place of unknown ones."""
    parts = (letter, unicodedata.normalize("NFKD", letter)[0])
    return next((part for part in parts if bytes(font.getmask(part)) != missing), "?")


def _width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """The width of a text in pixels."""
    return round(font.getlength(text))
