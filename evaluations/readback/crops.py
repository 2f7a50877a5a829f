"""Crops of single words as a reader sees them: gray, of one height, with a margin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.text_pictures import LUMA, Word

CROP_HEIGHT = 32  # pixels
CROP_WIDTH = 128
MARGIN = 0.2  # of the height of a box, on all four sides
MIN_STD = 1.0  # levels of 255; crops of one color stay near 0


class WordCrops:
    """Crops of words: `images` uint8 (n,32,128), of which the upper left `sizes` int64 (n,2) hold the word."""

    def __init__(self, images: Tensor, sizes: Tensor) -> None:
        self.images = images
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def joined(cls, parts: Sequence[WordCrops]) -> WordCrops:
        """All crops of several, in their order."""
        return cls(torch.cat([part.images for part in parts]), torch.cat([part.sizes for part in parts]))


def cut_words(image_u8: Tensor, words: Sequence[Word]) -> WordCrops:
    """Cuts the boxes of words out of a picture uint8 (3,H,W).

    Each crop keeps its ratio, and is resized (bilinear, antialiased) to 32 pixels of height, or to less where it would
    be wider than 128. The rest is 0.
    """
    gray = torch.tensordot(torch.tensor(LUMA), image_u8.float(), dims=1)
    images = torch.zeros(len(words), CROP_HEIGHT, CROP_WIDTH, dtype=torch.uint8)
    sizes = torch.zeros(len(words), 2, dtype=torch.int64)
    for number, word in enumerate(words):
        crop = _resized(_with_margin(gray, word.box))
        height, width = crop.shape
        images[number, :height, :width] = crop
        sizes[number] = torch.tensor([height, width])
    return WordCrops(images, sizes)


def _with_margin(gray: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """The box and a margin around it, as far as the picture (H,W) reaches."""
    left, top, right, bottom = box
    margin = max(1, round(MARGIN * (bottom - top)))
    return gray[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]


def _resized(crop: Tensor) -> Tensor:
    """A gray crop (h,w) at the size of the reader, uint8."""
    height, width = crop.shape
    scale = min(CROP_HEIGHT / height, CROP_WIDTH / width)
    size = (max(1, min(CROP_HEIGHT, round(height * scale))), max(1, min(CROP_WIDTH, round(width * scale))))
    resized = F.interpolate(crop[None, None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0, 0].round().clamp(0, 255).to(torch.uint8)


def standardized(images: Tensor, sizes: Tensor) -> Tensor:
    """Crops uint8 (B,32,128) -> float32 (B,1,32,128) of mean 0 and std 1 inside `sizes` (B,2), 0 outside."""
    rows = torch.arange(CROP_HEIGHT, device=images.device)[None, :, None] < sizes[:, 0, None, None]
    columns = torch.arange(CROP_WIDTH, device=images.device)[None, None, :] < sizes[:, 1, None, None]
    inside = (rows & columns).float()
    count = inside.sum((1, 2), keepdim=True)

    values = images.float() * inside
    mean = values.sum((1, 2), keepdim=True) / count
    centered = (values - mean) * inside
    std = (centered.square().sum((1, 2), keepdim=True) / count).sqrt().clamp_min(MIN_STD)
    return (centered / std)[:, None]
