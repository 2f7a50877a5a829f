"""PSNR and SSIM of image pairs, per image, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7  # pixels, of SSIM


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair (B,3,H,W), uint8 or float in [0,1] -> float64 (B,); identical pairs
    give +inf.
    """
    x, y = _pair(images, references)
    return -10 * torch.log10((x - y).square().flatten(1).mean(1))


def ssim(images: Tensor, references: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004). (B,3,H,W), uint8 or float in [0,1] -> float64 (B,).

    7x7 uniform window, sample covariance, mean over channels and over windows that lie inside the image: scikit-image's
    default. `data_range` is that of images scaled to [0,1]; GigaTok and LlamaGen publish values computed with 2, which
    are inflated.
    """
    x, y = _pair(images, references)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels are smaller than the SSIM window of {WINDOW}")

    def mean(v: Tensor) -> Tensor:
        return F.avg_pool2d(v, WINDOW, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x = unbiased * (mean(x * x) - mean_x * mean_x)
    var_y = unbiased * (mean(y * y) - mean_y * mean_y)
    cov = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.flatten(1).mean(1)


def _pair(*pair: Tensor) -> list[Tensor]:
    """float64 in [0,1] of two sets of images, which must have one shape."""
    if pair[0].shape != pair[1].shape or any(x.dtype not in (torch.uint8, torch.float32, torch.float64) for x in pair):
        found = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in pair)
        raise ValueError(f"expected uint8 or float images of one shape, found {found}")
    return [x.double() / 255 if x.dtype == torch.uint8 else x.double() for x in pair]
