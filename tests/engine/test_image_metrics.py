"""engine/image_metrics.py against scikit-image."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from engine.image_metrics import psnr, ssim


def pairs(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Four uint8 pairs (4,3,24,31) of one kind."""
    rng = np.random.default_rng(len(kind))
    a = rng.integers(0, 256, (4, 3, 24, 31)).astype(np.float64)
    if kind == "random":
        b = rng.integers(0, 256, a.shape).astype(np.float64)
    else:
        a = gaussian_filter(a, (0, 0, 3, 3)) * 3 - 256
        b = a + rng.normal(0, 6, a.shape) + np.arange(4)[:, None, None, None] * 5
    a, b = (torch.from_numpy(v.clip(0, 255).astype(np.uint8)) for v in (a, b))
    return a, b


def channels_last(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy().astype(np.float64) / 255


@pytest.mark.parametrize("kind", ["random", "smooth"])
def test_psnr_is_that_of_scikit_image(kind):
    a, b = pairs(kind)
    made = psnr(a, b)
    assert made.shape == (4,) and made.dtype == torch.float64
    for i in range(4):
        expected = peak_signal_noise_ratio(channels_last(b[i]), channels_last(a[i]), data_range=1.0)
        assert made[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["random", "smooth"])
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_that_of_scikit_image(kind, data_range):
    """Default window, per image, with the correct range 1 and with the range 2 of the published numbers."""
    a, b = pairs(kind)
    made = ssim(a, b, data_range=data_range)
    assert made.shape == (4,) and made.dtype == torch.float64
    for i in range(4):
        expected = structural_similarity(
            channels_last(a[i]), channels_last(b[i]), channel_axis=2, data_range=data_range
        )
        assert made[i].item() == pytest.approx(expected, abs=1e-10)


def test_range_2_inflates():
    """Why both are reported: the published variant is the larger number."""
    a, b = pairs("smooth")
    assert (ssim(a, b, data_range=2.0) > ssim(a, b) + 0.01).all()


def test_identical_images_are_perfect():
    a, _ = pairs("smooth")
    assert all(math.isinf(v) and v > 0 for v in psnr(a, a).tolist())
    torch.testing.assert_close(ssim(a, a), torch.ones(4, dtype=torch.float64))


def test_flat_images_are_defined():
    """No variance, no division by zero."""
    a = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert ssim(a, a).item() == pytest.approx(1.0) and 0 < ssim(a, a + 50).item() < 1


def test_what_is_no_pair_of_images_is_refused():
    """Other types, different shapes, and images below the window."""
    a = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    for x, y in ((a.int(), a), (a, a.bool()), (a, a[..., :7])):
        for metric in (psnr, ssim):
            with pytest.raises(ValueError, match="expected uint8 or float images of one shape"):
                metric(x, y)
    with pytest.raises(ValueError, match="smaller than the SSIM window of 7"):
        ssim(a[..., :6], a[..., :6])


def test_floats_in_0_to_1_are_not_rounded():
    """A target that was resized stays as it is: the same scale as uint8, without its rounding."""
    pixels = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = (pixels.double() / 255 + 0.001).float()
    assert psnr(pixels, target).tolist() == pytest.approx([60.0, 60.0], abs=1e-2)
    torch.testing.assert_close(ssim(pixels, pixels.double() / 255), torch.ones(2, dtype=torch.float64))
