"""engine/data/images.py and crops.py: pixels survive, and crops are ADM's, against a plain re-statement."""

import io
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from engine.data import resampling
from engine.data.crops import center_crop, random_crop, ten_crop
from engine.data.images import ImageError, image_tensor, read_image, to_float, to_pil, to_uint8
from engine.messages import UserError


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def coordinates(width: int, height: int) -> Image.Image:
    """Every pixel is (its column, its row, 0)."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def naive_resize(image: Image.Image, target: int) -> Image.Image:
    """ADM: while the short side is at least twice the target, halve with BOX; then BICUBIC to the target."""
    while min(*image.size) >= 2 * target:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = target / min(*image.size)
    return image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)


def naive_center(image: Image.Image, size: int) -> np.ndarray:
    array = pixels(naive_resize(image, size))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


# ---------------------------------------------------------------------------------------------- values
def test_all_256_values_survive_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats.min() == -1 and floats.max() == 1 and floats.dtype == torch.float32
    assert torch.equal(to_uint8(floats), values)


def test_values_outside_the_range_are_clamped():
    """Reconstructions are not clamped by the network: beyond -1 and 1 lies 0 and 255, never a wrap-around."""
    made = to_uint8(torch.tensor([-9.0, -1.01, -1.0, 0.0, 1.0, 1.01, 9.0]))
    assert made.tolist() == [0, 0, 0, 128, 255, 255, 255]


def test_tensor_and_picture_are_the_same_pixels():
    image = picture(7, 5)
    tensor = image_tensor(image)
    assert tensor.shape == (3, 5, 7) and tensor.dtype == torch.uint8
    assert tensor[1, 4, 6] == image.getpixel((6, 4))[1]
    assert np.array_equal(pixels(to_pil(tensor)), pixels(image))


# ---------------------------------------------------------------------------------------------- crops
SHAPES = [(16, 16), (17, 40), (40, 17), (64, 64), (100, 33), (33, 100), (5, 9), (129, 257)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_center_crop_is_adms(width, height):
    image = picture(width, height)
    made = center_crop(image, 16)
    assert made.size == (16, 16)
    assert np.array_equal(pixels(made), naive_center(image, 16))


def test_center_crop_of_the_right_size_changes_nothing():
    image = picture(16, 16)
    assert np.array_equal(pixels(center_crop(image, 16)), pixels(image))
    assert pixels(center_crop(coordinates(41, 16), 16))[0, 0, 0] == 12, "the window is in the middle"


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_random_crop_is_adms(width, height):
    """Short side to an integer in 16..20, then a window: against the same steps written plainly."""
    image = picture(width, height)
    for seed in range(5):
        made = random_crop(image, 16, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        array = pixels(naive_resize(image, rng.integers(16, 21)))
        x = rng.integers(array.shape[1] - 15)
        y = rng.integers(array.shape[0] - 15)
        assert np.array_equal(pixels(made), array[y : y + 16, x : x + 16])


def test_random_crop_sizes_are_uniform(monkeypatch):
    """The short side takes every integer from size to ceil(size / 0.8), equally often; both ends included."""
    sizes = Counter()
    resize = Image.Image.resize

    def watch(self, size, resample=None, **kwargs):
        sizes[min(size)] += 1
        return resize(self, size, resample, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", watch)
    image, rng, draws = picture(30, 26), np.random.default_rng(0), 3000
    for _ in range(draws):
        random_crop(image, 17, rng)
    expected = range(17, math.ceil(17 / 0.8) + 1)
    assert sorted(sizes) == list(expected)
    chi_square = sum((sizes[s] - draws / len(expected)) ** 2 / (draws / len(expected)) for s in expected)
    assert chi_square < 20.5, sizes  # 0.1 % of fair draws exceed this with 5 degrees of freedom


def test_random_crop_windows_are_uniform():
    """At a fixed scale every offset occurs, equally often, up to the last one that fits."""
    image, rng = coordinates(26, 16), np.random.default_rng(0)
    offsets = Counter(int(pixels(random_crop(image, 16, rng, min_scale=1.0))[0, 0, 0]) for _ in range(2200))
    assert sorted(offsets) == list(range(11))
    assert sum((n - 200) ** 2 / 200 for n in offsets.values()) < 29.6  # 0.1 %, 10 degrees of freedom


def test_ten_crops_are_corners_and_center_and_their_mirror_images():
    """Of the center crop to int(1.1 * size): top left, top right, bottom left, bottom right, center; then mirrored."""
    image = picture(90, 60)
    crops = ten_crop(image, 32)
    big = naive_center(image, 35)
    assert len(crops) == 10 and all(crop.size == (32, 32) for crop in crops)
    starts = [(0, 0), (0, 3), (3, 0), (3, 3), (2, 2)]
    for source, part in ((big, crops[:5]), (big[:, ::-1], crops[5:])):
        for (y, x), crop in zip(starts, part, strict=True):
            assert np.array_equal(pixels(crop), source[y : y + 32, x : x + 32])


def test_ten_crops_of_the_published_size_come_from_281_pixels(monkeypatch):
    sizes = []
    monkeypatch.setattr("engine.data.crops.center_crop", lambda image, size: sizes.append(size) or image)
    ten_crop(picture(281, 281), 256)
    assert sizes == [281]


def cropped_in_windows(monkeypatch, crop, image, strip_bytes=2000) -> np.ndarray:
    """The crop of an image that counts as too large to be resized as a whole."""
    with monkeypatch.context() as patch:
        patch.setattr(resampling, "MAX_WHOLE_BYTES", -1)
        patch.setattr(resampling, "STRIP_BYTES", strip_bytes)
        return pixels(crop(image))


@pytest.mark.parametrize("seed", range(60))
def test_windows_of_large_images_have_the_bits_of_whole_ones(monkeypatch, seed):
    """Center and random crops of wide, tall, small and large images, resized strip by strip, against Pillow."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(8, 40))
    width, height = (int(side) for side in np.exp(rng.uniform(np.log(2), np.log(600), 2)))
    image = picture(width, height, seed)
    for crop in (
        lambda image: center_crop(image, size),
        lambda image: random_crop(image, size, np.random.default_rng(seed)),
    ):
        made = cropped_in_windows(monkeypatch, crop, image, int(rng.choice([500, 5000, 10**6])))
        assert np.array_equal(made, pixels(crop(image))), (width, height, size)
    made = cropped_in_windows(monkeypatch, lambda image: center_crop(image, size), image)
    assert np.array_equal(made, naive_center(image, size))


def test_a_thin_image_is_cropped_before_it_is_enlarged():
    """1 x 10000 pixels at 256 would be 1.9 GB; the crop needs less than 20 MB, and shows the middle."""
    column = np.zeros((10000, 1, 3), np.uint8)
    column[5000:] = 255
    tracemalloc.start()
    for image in (Image.fromarray(column), Image.fromarray(column.swapaxes(0, 1).copy())):
        made = pixels(center_crop(image, 256))
        made = made if image.width == 1 else made.swapaxes(0, 1)
        assert (made == made[:, :1]).all() and made[0].max() < 128 < made[-1].min()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_an_unknown_order_of_passes_is_refused(monkeypatch):
    """A Pillow that resizes in a new way gives other bits: large images are refused, others are as it makes them."""
    monkeypatch.setattr(resampling, "pillow_order", lambda: None)
    with pytest.raises(UserError, match=r"1 x 10000 pixels needs more than 80 MiB .* another version of Pillow"):
        center_crop(Image.new("RGB", (1, 10000)), 256)
    assert center_crop(Image.new("RGB", (50, 100)), 16).size == (16, 16)


# ---------------------------------------------------------------------------------------------- files
def encoded(format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    picture(40, 30).convert(mode).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG RGB", "PNG L", "PNG RGBA", "JPEG CMYK", "GIF P"])
def test_every_kind_of_image_becomes_rgb(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(encoded(*kind.split()))
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text",
        encoded("JPEG")[:-200],
        encoded("PNG")[:-300],
        encoded("PNG")[:40],
        encoded("GIF")[:50],
        encoded("PNG")[:60] + b"\x00" * 400,
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "png header", "truncated gif", "overwritten png"],
)
def test_a_broken_file_is_named(tmp_path, content):
    """Empty, not an image, or cut off: the message names the file and the option that would skip it."""
    path = tmp_path / "n01440764_10026.JPEG"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "data.skip_broken=true" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")


def test_mirroring_is_along_the_width():
    """What `flip_prob` does is a horizontal flip."""
    assert pixels(ImageOps.mirror(coordinates(5, 4)))[0, 0].tolist() == [4, 0, 0]
