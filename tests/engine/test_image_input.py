"""engine/data/image_input: what people hold becomes the same floats as in the program, or one clear error."""

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.crops import center_crop
from engine.data.image_input import ImageSizes, float_images
from engine.data.image_output import images_as
from engine.data.images import image_tensor, to_float
from engine.messages import UserError

SIZES = ImageSizes(8)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
FLOATS = to_float(torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()))[None]  # (1,3,8,8)


def kinds(folder):
    """The same picture in every accepted kind."""
    path = folder / "picture.png"
    Image.fromarray(PIXELS).save(path)
    in_front = PIXELS.transpose(2, 0, 1)
    return [
        Image.fromarray(PIXELS), path, str(path), PIXELS, in_front, PIXELS[None], in_front[None], torch.tensor(PIXELS),
        torch.tensor(in_front), torch.tensor(in_front)[None], FLOATS, FLOATS[0], FLOATS[0].permute(1, 2, 0).numpy(),
        FLOATS.double(), FLOATS.numpy().astype(">f4"), np.asarray(Image.fromarray(PIXELS)), [PIXELS], (FLOATS[0],),
    ]  # fmt: skip


def test_every_kind_of_picture_gives_the_same_floats(tmp_path):
    for picture in kinds(tmp_path):
        images = float_images(picture, SIZES)
        assert images.dtype == torch.float32 and images.shape == (1, 3, 8, 8)
        assert torch.allclose(images, FLOATS, atol=1e-6)
    assert float_images(FLOATS, SIZES) is FLOATS  # no copy, no rounding
    assert float_images(kinds(tmp_path)[:4], SIZES).shape == (4, 3, 8, 8)


def test_gray_and_transparent_pictures():
    gray = float_images(PIXELS[..., 0], SIZES)
    assert torch.equal(gray, float_images(PIXELS[..., :1], SIZES)) and torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(gray, float_images(Image.fromarray(PIXELS[..., 0]), SIZES))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # nothing to be seen of it: the background is white
    assert torch.equal(float_images(clear, SIZES), torch.ones(1, 3, 8, 8))


def test_the_range_of_floats_is_said_where_it_is_not_plain():
    upper = (FLOATS + 1) / 2
    with pytest.raises(UserError, match=r"floats from 0\.?\d* to .* may stand for \[0, 1\]"):
        float_images(upper, SIZES)
    assert torch.allclose(float_images(upper, SIZES, value_range=(0, 1)), FLOATS, atol=1e-6)
    assert torch.equal(float_images(upper, SIZES, value_range=(-1, 1)), upper)
    assert torch.allclose(float_images(upper * 255, SIZES, value_range=(0, 255)), FLOATS, atol=1e-5)
    with pytest.raises(UserError, match=r"outside of \[-1, 1\]; is it value_range=\(0, 255\)"):
        float_images(upper * 255, SIZES)
    with pytest.raises(UserError, match=r"uint8 pixels lie in 0\.\.255"):
        float_images(PIXELS, SIZES, value_range=(0, 1))
    with pytest.raises(UserError, match=r"value_range=\(1, 0\) must be \(black, white\)"):
        float_images(FLOATS, SIZES, value_range=(1, 0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list is empty"),
        (7, "int is no image; accepted: PIL images"),
        ("missing.png", "there is no image file missing.png"),
        (np.zeros((8, 8, 4), np.uint8), "no axis of 1 or 3 channels.*transparent"),
        (np.zeros((3, 8, 3), np.uint8), "in front or behind"),
        (np.zeros((2, 2, 2, 8, 8), np.uint8), "is no image; accepted"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no pixels"),
        (np.zeros((8, 8, 3), np.int64), "numbers of type int64 are no pixels"),
        (torch.zeros(8, 8, 3, dtype=torch.bool), "numbers of type bool are no pixels"),
        (np.zeros((9, 8, 3), np.uint8), r"9 x 8 pixels \(height x width\) do not fit; accepted: 8 x 8 pixels; fit="),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "image 0 is a batch of 2"),
        ([np.zeros((8, 8, 3), np.uint8), None], "image 1: NoneType is no image"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(UserError, match=message):
        float_images(images, SIZES)


def test_other_sizes_are_cropped_or_squeezed_when_asked():
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    cropped = float_images(wide, SIZES, fit="crop")
    assert torch.equal(cropped, to_float(image_tensor(center_crop(wide, 8))[None]))  # as evaluations crop
    squeezed = float_images(wide, SIZES, fit="resize")
    assert squeezed.shape == cropped.shape and not torch.equal(squeezed, cropped)
    assert float_images(FLOATS, SIZES, fit="crop") is FLOATS  # what fits stays
    with pytest.raises(UserError, match="fit='center' is not known; choose one of: crop, resize"):
        float_images(wide, SIZES, fit="center")


def test_sizes_that_a_network_of_any_size_takes():
    sizes = ImageSizes(8, factor=4, min_side=8)
    assert float_images(np.zeros((8, 12, 3), np.uint8), sizes).shape == (1, 3, 8, 12)
    with pytest.raises(UserError, match=r"4 x 8 pixels .* accepted: multiples of 4 from 8 up, such as 8 x 8 pixels"):
        float_images(np.zeros((4, 8, 3), np.uint8), sizes)
    with pytest.raises(UserError, match="images of one call must have one size, found 8 x 8, 8 x 12"):
        float_images([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 12, 3), np.uint8)], sizes)


def test_images_come_out_as_asked():
    assert images_as(FLOATS, "float") is FLOATS
    pixels = images_as(FLOATS, "uint8")
    assert pixels.dtype == torch.uint8
    (picture,) = images_as(FLOATS, "pil")
    assert np.array_equal(np.asarray(picture), pixels[0].permute(1, 2, 0).numpy())
    assert (pixels[0].permute(1, 2, 0).int() - torch.tensor(PIXELS).int()).abs().max() <= 1
    with pytest.raises(UserError, match="output='png' is not known; choose one of: float, uint8, pil"):
        images_as(FLOATS, "png")
