"""Grids of images: every image in its place, enlarged by repetition, names beside rows and below images."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from engine.data import grids
from engine.data.grids import make_grid, save_grid, zoom_of
from engine.data.images import image_tensor, to_uint8

IMAGES = torch.linspace(-1, 1, 3 * 3 * 4 * 4).reshape(3, 3, 4, 4)


def written(path, *arguments, **options):
    """A grid as it is read back, uint8 (3,H,W)."""
    save_grid(path / "grid.png", *arguments, **options)
    with Image.open(path / "grid.png") as file:
        assert file.mode == "RGB"
        return image_tensor(file)


def test_a_grid_shows_every_image_in_reading_order():
    images = torch.stack([torch.full((3, 2, 3), v) for v in (-1.0, -0.5, 0.0, 0.5, 1.0)])
    grid = make_grid(images, columns=2, padding=1)
    assert grid.shape == (3, 3 * 3 + 1, 2 * 4 + 1) and grid.dtype == torch.uint8
    expected = torch.full_like(grid, 255)
    for i, value in enumerate(to_uint8(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])).tolist()):
        y, x = (i // 2) * 3 + 1, (i % 2) * 4 + 1
        expected[:, y : y + 2, x : x + 3] = value
    assert torch.equal(grid, expected)


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_a_saved_grid_is_the_grid_enlarged_by_repetition(tmp_path, columns):
    """By the factor that small images need to be seen, unless another one is asked for."""
    expected = make_grid(IMAGES, columns).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(written(tmp_path, IMAGES, columns, zoom=2), expected)
    assert [zoom_of(torch.zeros(1, 3, side, side)) for side in (4, 32, 64, 256)] == [24, 3, 1, 1]
    assert written(tmp_path, IMAGES, columns).shape[1] == 24 * make_grid(IMAGES, columns).shape[1]


def test_names_stand_beside_rows_and_below_images(tmp_path):
    """The images themselves keep their pixels; every name leaves ink, and a row without one none."""
    plain = written(tmp_path, IMAGES, 2)
    named = written(tmp_path, IMAGES, 2, row_names=["a long name of a row of images", ""])
    width = named.shape[2] - plain.shape[2]
    assert 0 < width <= grids.ROW_NAME_WIDTH + 2 * grids.MARGIN
    assert torch.equal(named[:, :, width:], plain)
    first_row, second_row = named[:, :144, :width], named[:, 144:, :width]
    assert (first_row < 128).any() and (second_row == 255).all()

    below = written(tmp_path, IMAGES, 2, image_names=["one", "", "three"])
    strip = below.shape[1] - plain.shape[1]
    assert torch.equal(below[:, :144], plain[:, :144])
    places = [below[:, 144 : 144 + strip // 2, left : left + 140] for left in (40, 190)]
    assert [(place < 128).any().item() for place in places] == [True, False]


def test_a_caption_stands_above_the_images(tmp_path):
    """In as many lines as the width needs; the images keep their pixels, and a narrow grid gets room at its right."""
    plain = written(tmp_path, IMAGES, 1)
    words = "Generated: one class per row, the first samples of each class, not selected. seed 0, guidance scale 2."
    named = written(tmp_path, IMAGES, 1, caption=words)
    height = named.shape[1] - plain.shape[1]
    assert named.shape[2] == grids.MIN_CAPTION_WIDTH > plain.shape[2]
    assert height == 3 * grids.LINE_HEIGHT + 2 * grids.MARGIN and (named[:, :height] < 128).any()
    assert torch.equal(named[:, height:, : plain.shape[2]], plain)
    long = written(tmp_path, IMAGES, 1, caption="many words " * 200)
    assert long.shape[1] - plain.shape[1] == grids.MAX_CAPTION_LINES * grids.LINE_HEIGHT + 2 * grids.MARGIN


@pytest.mark.parametrize("name", ["", "<img src=x>", "\u732b", "\udce9 \n\t", "x" * 500, "many " * 100])
def test_any_name_fits(tmp_path, name, monkeypatch):
    """Too long ones are cut; also with the small font of a Pillow without FreeType."""
    for _ in range(2):
        lines = grids._lines(name, 100, grids._font())
        assert len(lines) <= grids.MAX_LINES and all(grids._width(line, grids._font()) <= 100 for line in lines)
        written(tmp_path, IMAGES, 2, row_names=[name], image_names=[name])
        monkeypatch.setattr(grids, "_font", ImageFont.load_default_imagefont)


def test_letters_that_the_font_lacks_are_no_boxes():
    """Its letters beside those of English are few."""
    font = grids._font()
    assert grids._drawable("it's <b> & 7", font) == "it's <b> & 7"
    assert grids._drawable("\u00e9t\u00e9 \u65e5\u672c", font) == "ete ??"


def test_a_picture_is_small(tmp_path):
    """Repeated pixels hardly cost: three times the side takes less than twice the bytes."""
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (16, 3, 32, 32)).astype(np.float32))
    sizes = []
    for zoom in (1, 3):
        save_grid(tmp_path / "grid.png", noise, 8, zoom=zoom)
        sizes.append((tmp_path / "grid.png").stat().st_size)
    assert sizes[1] < 2 * sizes[0]
