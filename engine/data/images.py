"""Images: decoding, float <-> uint8, and files.

Inside the program images are float32 (B,3,H,W) in [-1,1]; uint8 stands only at file borders and in batches on their way
to the device.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from engine.data.decoding import DEFAULT_DECODING, Decoding, PixelError, rgb_of
from engine.finite import require_finite
from engine.messages import UserError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
# What may be done about a broken image of a set.
SKIP_HINT = "remove it, or skip such files (data.skip_broken=true, or --skip-broken of commands that have it)"


class ImageError(UserError):
    """An image file that cannot be decoded; the message names it."""


# ------------------------------------------------------------------------------------------------ decoding
def decode_image(
    read: Callable[[], bytes], where: str, decoding: Decoding = DEFAULT_DECODING, hint: str = SKIP_HINT
) -> Image.Image:
    """Decodes the content of an image file as RGB; `where` names it in messages, which end with the `hint`.

    Raises ImageError if the file cannot be read, is truncated or no image, or holds pixels of unknown meaning.
    """
    try:
        content = read()
        return rgb_of(lambda: open_content(content), decoding)
    except Exception as error:  # decoders of damaged files raise whatever they meet, MemoryError included
        reason = str(error) or type(error).__name__
        advice = f"; {hint}" if hint else ""
        raise ImageError(f"{where} is not a readable image ({reason}){advice}") from error


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The formats that Pillow reads itself, in its order: for EPS it would run Ghostscript on the file."""
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")


def open_content(content: bytes) -> Image.Image:
    """Opens the content of an image file, whatever its name says, without decoding it.

    Raises PixelError for an unknown format.
    """
    try:
        return Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError as error:
        raise PixelError("its content is of no known image format") from error


def read_image(path: str | Path, decoding: Decoding = DEFAULT_DECODING, hint: str = SKIP_HINT) -> Image.Image:
    """Reads an image file as RGB. Raises ImageError if it cannot be decoded, with the `hint` of what to do about it.

    An image that was named by itself is in no set that could do without it: its hint is empty.
    """
    return decode_image(Path(path).read_bytes, printable(path), decoding, hint)


def printable(name: str | Path) -> str:
    """A file name for messages and records: bytes that are not UTF-8 become escapes such as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


# ------------------------------------------------------------------------------------------------ tensors
def to_float(images_u8: Tensor) -> Tensor:
    """uint8 in [0,255] -> float32 in [-1,1]."""
    return images_u8.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float (B, ...) in [-1,1] -> uint8, by the rule of the released code: clamp(127.5 x + 128, 0, 255), truncated.

    Raises NonFiniteValuesError for NaN or infinity, which would become black or white.
    """
    require_finite(images, "pixels")
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def resize_for_evaluation(images: Tensor, size: int) -> Tensor:
    """float (B,3,H,W) in [-1,1] -> (B,3,size,size), bicubic without antialiasing, before any clamp.

    LlamaGen's rule (arXiv:2406.06525, released evaluation code): its 384 px models are measured at 256 px.
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)


def image_tensor(image: Image.Image) -> Tensor:
    """PIL image -> uint8 (3,H,W)."""
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def to_pil(image_u8: Tensor) -> Image.Image:
    """uint8 (3,H,W) -> PIL image."""
    return Image.fromarray(image_u8.permute(1, 2, 0).contiguous().numpy())
