"""PSNR and SSIM of image pairs, per image, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair. uint8 (B,3,H,W) -> float64 (B,); identical pairs give +inf."""
    _check(images, references)
    mse = (images.double() - references.double()).div(255).square().flatten(1).mean(1)
    return -10 * torch.log10(mse)


def ssim(images: Tensor, references: Tensor, data_range: float = 1.0, window: int = 7) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004). uint8 (B,3,H,W) -> float64 (B,).

    7x7 uniform window, sample covariance, mean over channels and over windows that lie inside the image: scikit-image's
    default. `data_range` is that of images scaled to [0,1]; GigaTok and LlamaGen publish values computed with 2, which
    are inflated.
    """
    _check(images, references)
    if min(images.shape[-2:]) < window:
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels are smaller than the SSIM window of {window}")
    x, y = images.double() / 255, references.double() / 255
    count = window * window

    def mean(v: Tensor) -> Tensor:
        return F.avg_pool2d(v, window, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    unbiased = count / (count - 1)
    var_x = unbiased * (mean(x * x) - mean_x * mean_x)
    var_y = unbiased * (mean(y * y) - mean_y * mean_y)
    cov = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.flatten(1).mean(1)


def _check(images: Tensor, references: Tensor) -> None:
    if images.dtype != torch.uint8 or references.dtype != torch.uint8 or images.shape != references.shape:
        raise ValueError(
            f"expected two uint8 tensors of one shape, found {images.dtype} {tuple(images.shape)} "
            f"and {references.dtype} {tuple(references.shape)}"
        )
