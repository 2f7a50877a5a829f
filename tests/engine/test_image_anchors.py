"""Reconstructions without a network, which the PSNR of a tokenizer is compared with."""

import mini
import numpy as np
import pytest
import torch

from engine.data.images import to_float
from engine.image_anchors import ANCHORS, anchor_psnrs, mean_color, shrunken
from engine.image_metrics import MAX_PSNR


def test_the_mean_color_has_the_psnr_of_the_variance():
    """By hand: the squared error of each channel against its mean, rounded to 8 bits."""
    images = mini.random_images(3, size=8)
    expected = []
    for image in images.numpy().astype(np.float64):
        means = image.reshape(3, -1).mean(1)
        error = ((image - np.floor(means + 0.5)[:, None, None]) / 255) ** 2
        expected.append(-10 * np.log10(error.mean()))
    assert anchor_psnrs(images, 4)["psnr_mean_color"].tolist() == pytest.approx(expected, abs=1e-3)


def test_a_grid_cell_is_the_mean_of_its_pixels_and_edges_are_lost():
    """Four tokens: 2 x 2 cells. A flat image comes back, a checkerboard of pixels becomes gray."""
    images = to_float(mini.random_images(3, size=8))
    cells = images.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    torch.testing.assert_close(shrunken(images, 4).mean((2, 3)), cells.mean((2, 3)), atol=0.05, rtol=0)

    checkerboard = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).repeat(4, 4).expand(1, 3, 8, 8)
    assert shrunken(checkerboard, 4).abs().max() < 1e-6
    assert torch.equal(shrunken(torch.full((1, 3, 8, 8), 0.25), 4), torch.full((1, 3, 8, 8), 0.25))


def test_as_many_tokens_as_pixels_lose_nothing_and_one_token_is_the_mean_color():
    images = mini.random_images(3, size=8)
    assert anchor_psnrs(images, 64)["psnr_shrunken"].tolist() == [MAX_PSNR] * 3
    assert anchor_psnrs(images, 1000)["psnr_shrunken"].tolist() == [MAX_PSNR] * 3
    torch.testing.assert_close(shrunken(to_float(images), 1), mean_color(to_float(images)).contiguous())


def test_a_number_of_tokens_that_is_no_square_has_the_largest_grid_that_it_fills():
    images = mini.random_images(3, size=8)
    eight, nine = (anchor_psnrs(images, count)["psnr_shrunken"] for count in (8, 9))
    assert torch.equal(eight, anchor_psnrs(images, 4)["psnr_shrunken"])
    assert (nine > eight).all()
    assert tuple(anchor_psnrs(images, 4)) == ANCHORS
