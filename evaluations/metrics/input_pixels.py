"""Pictures resized for the input of a feature extractor, by Pillow: what most published numbers were made with."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from engine.data.images import image_tensor, to_pil


def pil_bicubic(images_u8: Tensor, size: int) -> Tensor:
    """Images uint8 (B,3,H,W) squashed to (B,3,size,size), uint8, on the same device.

    Pillow's bicubic filter is always antialiased, and rounds to 8 bits after rows and after columns.
    """
    if images_u8.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, found {images_u8.dtype}")
    if images_u8.shape[2:] == (size, size):
        return images_u8
    resized = [to_pil(image).resize((size, size), Image.Resampling.BICUBIC) for image in images_u8.cpu()]
    return torch.stack([image_tensor(image) for image in resized]).to(images_u8.device)


def central_square(images: Tensor) -> Tensor:
    """The largest central square of images (B,3,H,W), side min(H,W)."""
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]


def normalized(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels (B,3,H,W) in 0..255 -> (pixels / 255 - mean) / std, float32; mean and std (3,1,1)."""
    return (pixels.float() / 255 - mean) / std
