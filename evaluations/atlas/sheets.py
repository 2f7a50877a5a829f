"""Many small pictures in few: sheets of equal cells, as compact as a page needs them.

A page has room for a few megabytes of pictures. They are stored as well as fits: as they are where they are small, else
smaller and with more compression, by the first of `GRADES` that fits.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from engine.arithmetic import ceil_div
from engine.data.images import to_pil
from engine.messages import UserError

SHEET_COLUMNS = 32
EXACT_SIDE = 64  # pixels; smaller pictures are stored without loss where they fit
LARGE_QUALITY = 90  # of single pictures


@dataclass(frozen=True)
class Grade:
    """How pictures are stored: of at most `side` pixels per side, without loss or with a `quality` of WebP."""

    side: int
    quality: int | None


GRADES = (
    Grade(EXACT_SIDE, None),
    *(Grade(side, quality) for side in (128, 96, 80, 64) for quality in (80, 65)),
    *(Grade(side, 55) for side in (64, 48, 32, 24, 16)),
)


@dataclass(frozen=True)
class Sheet:
    """One picture that holds many: cell i is in row i // columns and column i % columns, `cell` pixels per side."""

    uri: str
    columns: int
    cell: int

    def facts(self) -> dict[str, str | int]:
        """What the page needs to draw a cell."""
        return {"uri": self.uri, "columns": self.columns, "cell": self.cell}


def picture_uri(image_u8: Tensor) -> str:
    """A picture uint8 (3,H,W) or (H,W) for a page: without loss if it is small."""
    is_small = max(image_u8.shape[-2:]) <= EXACT_SIDE
    return _uri(_webp(image_u8, None if is_small else LARGE_QUALITY))


def _uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def _webp(image_u8: Tensor, quality: int | None) -> bytes:
    """An image uint8 (3,H,W) or (H,W) as WebP; without a quality it loses nothing."""
    image = to_pil(image_u8) if image_u8.ndim == 3 else Image.fromarray(image_u8.numpy())
    buffer = io.BytesIO()
    options = {"lossless": True} if quality is None else {"quality": quality}
    image.save(buffer, format="WEBP", **options)
    return buffer.getvalue()


def tiled(pictures: Tensor, columns: int) -> Tensor:
    """Pictures uint8 (K,C,s,s) in reading order in one of (C, rows*s, columns*s); cells without a picture are black."""
    num_pictures, channels, side, _ = pictures.shape
    rows = ceil_div(num_pictures, columns)
    padded = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, rows * columns - num_pictures))
    return padded.view(rows, columns, channels, side, side).permute(2, 0, 3, 1, 4).reshape(channels, rows * side, -1)


def shrunk(pictures: Tensor, side: int) -> Tensor:
    """Pictures uint8 (K,C,s,s) of at most `side` pixels per side; each pixel is a mean."""
    if pictures.shape[-1] <= side:
        return pictures
    return F.interpolate(pictures.float(), size=(side, side), mode="area").round().to(torch.uint8)


def sheet_of(pictures: Tensor, grade: Grade) -> Sheet:
    """Pictures uint8 (K,3,s,s) as one sheet."""
    columns = min(SHEET_COLUMNS, len(pictures))
    small = shrunk(pictures, grade.side)
    return Sheet(_uri(_webp(tiled(small, columns), grade.quality)), columns, small.shape[-1])


def gray_sheet(maps: Tensor) -> Sheet:
    """Maps uint8 (K,m,m) as one gray sheet without loss; they must be square."""
    columns = min(SHEET_COLUMNS, len(maps))
    return Sheet(_uri(_webp(tiled(maps[:, None], columns)[0], None)), columns, maps.shape[-1])


def fitting_sheets(sets: Sequence[Tensor], room: int, what: str) -> list[Sheet]:
    """One sheet per set of pictures uint8 (K,3,s,s), all in the same way, in at most `room` characters of a page.

    Raises UserError, which says `what` the pictures are, where they do not fit at all.
    """
    if not sets:
        return []
    side = sets[0].shape[-1]
    for grade in GRADES:
        # The first set tells which grades are hopeless, without the work of all.
        if grade.quality is None and side > grade.side:
            continue
        first = sheet_of(sets[0], grade)
        if len(first.uri) * len(sets) > 1.5 * room:
            continue
        sheets = [first, *(sheet_of(pictures, grade) for pictures in sets[1:])]
        if sum(len(sheet.uri) for sheet in sheets) <= room:
            return sheets
    raise UserError(f"{what} do not fit into a page; show fewer (--images, --tokens, --codes)")
