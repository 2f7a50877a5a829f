"""Images: uint8 at file borders, float32 in [-1,1] inside. Crops of the ADM code base, grids, and files."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from engine.messages import UserError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


class ImageError(UserError):
    """An image file that cannot be decoded; the message names it."""


def decode_image(read: Callable[[], bytes], where: str) -> Image.Image:
    """The content of an image file as RGB. What is lost, truncated or no image is an `ImageError` that says `where`."""
    try:
        with Image.open(io.BytesIO(read())) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{where} is not a readable image ({error}); remove it, or skip such files "
            "(data.skip_broken=true, --skip-broken)"
        ) from error


def read_image(path: str | Path) -> Image.Image:
    """An image file as RGB; see `decode_image`."""
    return decode_image(Path(path).read_bytes, str(path))


def to_float(images_u8: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1,1]."""
    return images_u8.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float in [-1,1] -> uint8, by the rule of the released code: clamp(127.5 x + 128, 0, 255), truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def resize_for_evaluation(images: Tensor, size: int) -> Tensor:
    """float (B,3,H,W) in [-1,1] -> (B,3,size,size), bicubic without antialias, before any clamp.

    LlamaGen's rule (arXiv:2406.06525, released evaluation code): its 384 px models are measured at 256 px.
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)


def image_tensor(image: Image.Image) -> Tensor:
    """A PIL image -> uint8 (3,H,W)."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).contiguous()


def make_grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """(B,3,H,W) in [-1,1] -> uint8 (3, rows*(H+padding)+padding, ...) with white gaps."""
    tiles = F.pad(to_uint8(images.detach().cpu()), (padding, 0, padding, 0), value=255)
    columns = min(columns, len(tiles))
    tiles = torch.cat([tiles, tiles.new_full((-len(tiles) % columns, *tiles.shape[1:]), 255)])
    grid = tiles.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # (3, rows, H, columns, W)
    return F.pad(grid, (0, padding, 0, padding), value=255)


def to_pil(image_u8: Tensor) -> Image.Image:
    """uint8 (3,H,W) -> PIL image."""
    return Image.fromarray(image_u8.permute(1, 2, 0).contiguous().numpy())


def save_grid(path: str | Path, images: Tensor, columns: int, zoom: int = 1) -> None:
    """Writes a grid as PNG; `zoom` enlarges small images by pixel repetition."""
    grid = to_pil(make_grid(images, columns))
    if zoom > 1:
        grid = grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
