"""PSNR and SSIM of image pairs, per image, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair (B,3,H,W), uint8 or float in [0,1] -> float64 (B,); identical pairs
    give +inf.
    """
    mse = (_unit(images) - _unit(references, images)).square().flatten(1).mean(1)
    return -10 * torch.log10(mse)


def ssim(images: Tensor, references: Tensor, data_range: float = 1.0, window: int = 7) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004). (B,3,H,W), uint8 or float in [0,1] -> float64 (B,).

    7x7 uniform window, sample covariance, mean over channels and over windows that lie inside the image: scikit-image's
    default. `data_range` is that of images scaled to [0,1]; GigaTok and LlamaGen publish values computed with 2, which
    are inflated.
    """
    x, y = _unit(images), _unit(references, images)
    if min(images.shape[-2:]) < window:
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels are smaller than the SSIM window of {window}")
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


def _unit(images: Tensor, other: Tensor | None = None) -> Tensor:
    """float64 in [0,1]; `other` must have the same shape."""
    if images.dtype not in (torch.uint8, torch.float32, torch.float64) or (
        other is not None and images.shape != other.shape
    ):
        against = f" against {tuple(other.shape)}" if other is not None else ""
        raise ValueError(
            f"expected uint8 or float images of one shape, found {images.dtype} {tuple(images.shape)}{against}"
        )
    return images.double() / 255 if images.dtype == torch.uint8 else images.double()
