"""PSNR and SSIM of image pairs, per image, in float64.

Images are uint8, or float in [0,1]; both images of a pair have one shape (3,H,W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7  # pixels, side of the SSIM window
MAX_PSNR = 100.0  # dB, what equal images count as in a mean


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each pair. (B,3,H,W) -> float64 (B,); equal images give +inf.

    Raises ValueError if the images are of different shapes or of another type.
    """
    x, y = _as_float64(images, references)
    return -10 * torch.log10((x - y).square().flatten(1).mean(1))


def ssim(images: Tensor, references: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each pair (Wang et al., 2004). (B,3,H,W) -> float64 (B,).

    7x7 uniform window, sample covariance, mean over channels and over windows that lie inside the image: scikit-image's
    default. `data_range` is that of images scaled to [0,1]; GigaTok and LlamaGen publish values computed with 2, which
    are inflated.

    Raises ValueError if the images are of different shapes, of another type, or smaller than the window.
    """
    x, y = _as_float64(images, references)
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(f"images of {tuple(images.shape[-2:])} pixels are smaller than the SSIM window of {WINDOW}")

    def window_mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, WINDOW, stride=1)

    # Means, variances and the covariance of each window.
    mean_x, mean_y = window_mean(x), window_mean(y)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_x = unbiased * (window_mean(x * x) - mean_x * mean_x)
    var_y = unbiased * (window_mean(y * y) - mean_y * mean_y)
    cov = unbiased * (window_mean(x * y) - mean_x * mean_y)

    # Eq. 13 of the paper, with its constants K1 = 0.01 and K2 = 0.03.
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    value = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.flatten(1).mean(1)


def _as_float64(*pair: Tensor) -> list[Tensor]:
    """Both sets of images as float64 in [0,1]."""
    same_shape = pair[0].shape == pair[1].shape
    known_types = all(x.dtype in (torch.uint8, torch.float32, torch.float64) for x in pair)
    if not (same_shape and known_types):
        shapes = " and ".join(f"{x.dtype} {tuple(x.shape)}" for x in pair)
        raise ValueError(f"expected uint8 or float images of one shape, found {shapes}")
    return [x.double() / 255 if x.dtype == torch.uint8 else x.double() for x in pair]
