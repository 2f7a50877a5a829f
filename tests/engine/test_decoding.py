"""engine/data/decoding.py: every mode of pixels becomes the right RGB, or is refused by its name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from engine.data.decoding import Decoding, rgb_of
from engine.data.images import ImageError, decode_image, read_image

RNG = np.random.default_rng(0)
SHAPE = (7, 9)  # height, width
WHITE, BLACK = Decoding(), Decoding(background="black")


def decoded(content: bytes, decoding: Decoding = WHITE) -> np.ndarray:
    return np.asarray(decode_image(lambda: content, "a/b.png", decoding))


def refusal(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(content)
    assert str(caught.value).startswith("a/b.png is not a readable image (")
    return str(caught.value)


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(pixels: np.ndarray, color_type: int, bits: int = 16, transparent: bytes = b"") -> bytes:
    """A PNG of rows as they are, without filters, to the letter of its specification."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in pixels)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    if transparent:
        chunks.insert(1, chunk(b"tRNS", transparent))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(pixels: np.ndarray, order: str, photometric: int, bits: int = 16, **more: int) -> bytes:
    """A TIFF with one strip; `more` are further tags, as t284=2."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    data = pixels.astype(f"{order}u{pixels.dtype.itemsize}").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: channels, 278: height}
    tags |= {279: len(data)} | {int(key[1:]): value for key, value in more.items()}
    directory = struct.pack(f"{order}H", len(tags))
    end = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        count = channels if tag == 258 else 1
        place = end if count > 2 else value << 16 | value if count == 2 else value
        packed = struct.pack(f"{order}HHI", tag, 3 if count > 1 else 4, count) + struct.pack(f"{order}I", place)
        directory += packed
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return start + data + directory + b"\0\0\0\0" + struct.pack(f"{order}{channels}H", *[bits] * channels)


def eight(values: np.ndarray) -> np.ndarray:
    """The nearest of 256 levels, in exact arithmetic."""
    return np.array([round(int(v) / 257) for v in values.ravel()], dtype=np.uint8).reshape(values.shape)


def values_16(channels: int) -> np.ndarray:
    values = RNG.integers(0, 65536, (*SHAPE, channels))
    values.ravel()[:12] = [0, 65535, 1, 128, 129, 255, 256, 257, 32767, 32768, 65406, 65407]
    return values.astype(np.uint16)


def over(colors: np.ndarray, alpha: np.ndarray, background: int) -> np.ndarray:
    weight = alpha[..., None] / 255
    return colors * weight + background * (1 - weight)


# ---------------------------------------------------------------------------------------------- 16 bits
def test_gray_of_16_bits_is_the_nearest_of_256_levels():
    values = values_16(1)[..., 0]
    expected = np.repeat(eight(values)[..., None], 3, 2)
    assert np.array_equal(decoded(png(values, 0)), expected)
    for order in "<>":
        assert np.array_equal(decoded(tiff(values, order, 1)), expected)
    assert np.array_equal(decoded(tiff(65535 - values, "<", 0)), expected), "white is zero"
    pgm = b"P5 9 7 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(decoded(pgm), expected)


def test_colors_of_16_bits_are_the_nearest_of_256_levels():
    """Pillow alone takes the high byte: 0x00ff becomes 0 and 0x7fff 127."""
    values = values_16(3)
    assert np.array_equal(decoded(png(values, 2)), eight(values))
    for order in "<>":
        assert np.array_equal(decoded(tiff(values, order, 2)), eight(values))
    ppm = b"P6 9 7 65535\n" + values.astype(">u2").tobytes()
    assert np.array_equal(decoded(ppm), eight(values))


@pytest.mark.parametrize(("decoding", "background"), [(WHITE, 255), (BLACK, 0)])
def test_alpha_of_16_bits_is_composited(decoding, background):
    values = values_16(4)
    small = eight(values)
    made = decoded(png(values, 6), decoding)
    assert np.abs(made - over(small[..., :3], small[..., 3], background)).max() <= 1
    gray = decoded(png(values[..., 2:], 4), decoding)
    expected = over(np.repeat(small[..., 2:3], 3, 2), small[..., 3], background)
    assert np.abs(gray - expected).max() <= 1


def test_a_transparent_color_of_16_bits_is_compared_in_16_bits():
    """Of two colors with equal high bytes only the one in tRNS vanishes."""
    values = np.full((*SHAPE, 3), 0x1234, np.uint16)
    values[0, 0] = 0x1235
    made = decoded(png(values, 2, transparent=struct.pack(">3H", *[0x1234] * 3)))
    assert made[0, 0].tolist() == [18, 18, 18] and (made.reshape(-1, 3)[1:] == 255).all()
    made = decoded(png(values[..., 0], 0, transparent=struct.pack(">H", 0x1234)))
    assert made[0, 0].tolist() == [18, 18, 18] and (made.reshape(-1, 3)[1:] == 255).all()


def test_a_transparent_gray_of_few_bits_is_compared_as_it_is_stored():
    content = png(np.array([[0b00_01_10_11]], np.uint8), 0, bits=2, transparent=struct.pack(">H", 1))
    content = content.replace(struct.pack(">II", 1, 1), struct.pack(">II", 4, 1))
    header = content[12:29]
    content = content[:29] + struct.pack(">I", zlib.crc32(header)) + content[33:]
    assert decoded(content)[0, :, 0].tolist() == [0, 255, 170, 255]
    assert decoded(content, BLACK)[0, :, 0].tolist() == [0, 0, 170, 255]


def test_planes_and_other_depths_are_refused_by_name():
    assert "one plane per channel" in refusal(tiff(values_16(3), "<", 2, t284=2))
    assert "CMYK with 16 bits" in refusal(tiff(values_16(4), "<", 5))
    assert "12 bits per pixel" in refusal(tiff(np.zeros((2, 3), np.uint8), "<", 1, bits=12))


# ---------------------------------------------------------------------------------------------- 32 bits
@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_are_read_in_0_to_255_only(kind):
    values = RNG.integers(0, 256, SHAPE).astype(kind)
    values[0, :2] = [0, 255]
    assert np.array_equal(decoded(saved(Image.fromarray(values), "TIFF")), np.repeat(values[..., None], 3, 2))
    name = "integers" if kind is np.int32 else "floats"
    for wrong, text in ((256, "0 to 256"), (-1, "-1 to 255"), (70000, "0 to 70000")):
        values[1, 1] = wrong
        message = refusal(saved(Image.fromarray(values), "TIFF"))
        assert f"32-bit {name} from {text} cannot be read; accepted: all values in 0..255" in message


def test_floats_are_rounded_and_refused_where_their_scale_or_value_is_unknown():
    values = np.array([[0.4, 0.6, 254.6]], np.float32)
    assert decoded(saved(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 1, 255]
    assert "may lie in 0..1 or in 0..255" in refusal(saved(Image.fromarray(values / 255), "TIFF"))
    for wrong in (np.nan, np.inf):
        values[0, 1] = wrong
        assert "32-bit floats with NaN or infinite values" in refusal(saved(Image.fromarray(values), "TIFF"))


# ---------------------------------------------------------------------------------------------- alpha
def disc() -> np.ndarray:
    """RGBA: a half-transparent red pixel, an opaque black one, and noise that must not be seen."""
    pixels = RNG.integers(0, 256, (*SHAPE, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[0, 0] = [255, 0, 0, 128]
    pixels[0, 1] = [0, 0, 0, 255]
    return pixels


@pytest.mark.parametrize(("decoding", "background"), [(WHITE, 255), (BLACK, 0)])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_what_is_transparent_shows_the_background(format, decoding, background):
    content = saved(Image.fromarray(disc()), format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    made = decoded(content, decoding)
    half = round(background * 127 / 255)
    assert np.abs(made[0, 0] - np.array([128 + half, half, half])).max() <= 1
    assert made[0, 1].tolist() == [0, 0, 0]
    assert (made.reshape(-1, 3)[2:] == background).all()


def test_gray_with_alpha_and_transparent_palettes_show_the_background():
    black = disc()
    black[..., :3] = 0
    expected = np.full((*SHAPE, 3), 255)
    expected[0, 1] = 0
    gray = decoded(saved(Image.fromarray(black[..., [0, 3]])))
    assert gray[0, 0, 0] == 127 and np.array_equal(gray.reshape(-1, 3)[1:], expected.reshape(-1, 3)[1:])

    opaque = Image.fromarray(np.where(black[..., 3] == 255, 1, 0).astype(np.uint8), "P")
    opaque.putpalette([90, 80, 70, 0, 0, 0])  # the transparent color is no black
    for format in ("PNG", "GIF"):
        assert np.array_equal(decoded(saved(opaque, format, transparency=0)), expected), format
    partly = saved(opaque, "PNG", transparency=bytes([0, 255]))
    assert np.array_equal(decoded(partly), expected)
    assert decoded(partly, BLACK).max() == 0
    assert np.array_equal(decoded(saved(opaque)), np.where(expected == 0, 0, [90, 80, 70])), "no transparency"


def test_opaque_pictures_are_as_ever():
    """RGB, gray, palette, black and white, CMYK and YCbCr: what Pillow's conversion gives, for any background."""
    colors = Image.fromarray(disc()[..., :3])
    for mode, format in (
        ("RGB", "PNG"), ("RGB", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"),
        ("L", "GIF"), ("RGB", "BMP"), ("RGB", "WEBP"),
    ):  # fmt: skip
        content = saved(colors.convert(mode), format)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        for decoding in (WHITE, BLACK):
            assert np.array_equal(decoded(content, decoding), expected), (mode, format)
    for mode in ("YCbCr", "HSV"):
        image = colors.convert(mode)
        assert np.array_equal(np.asarray(rgb_of(lambda image=image: image)), np.asarray(image.convert("RGB")))


def test_lab_is_refused_by_name():
    lab = Image.fromarray(disc()[..., :3]).convert("RGB")
    content = saved(Image.frombytes("LAB", lab.size, lab.tobytes()), "TIFF")
    assert "mode LAB" in refusal(content)


# ---------------------------------------------------------------------------------------------- orientation
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_followed_only_when_asked(format):
    """The eight EXIF orientations, each undone: the stored picture is what a camera in that position stores."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # only the upper left corner is white
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    options = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(Image.fromarray(np.ascontiguousarray(pixels)), format, exif=exif, **options)
        for decoding, expected in ((WHITE, pixels), (Decoding(orientation="upright"), upright)):
            made = decoded(content, decoding)
            assert made.shape == expected.shape and np.abs(made.astype(int) - expected).max() < 40, orientation


def test_an_identity_names_what_is_not_the_default():
    assert WHITE.suffix() == ""
    assert Decoding("black", "upright").suffix() == " background=black orientation=upright"


# ---------------------------------------------------------------------------------------------- broken files
def dds() -> bytes:
    return b"DDS " + struct.pack("<7I", 124, 0x1007, 4, 4, 8, 0, 0) + bytes(44) + struct.pack("<2I", 32, 4) + b"ABCD"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "DDS"])
def test_a_damaged_file_of_any_decoder_is_an_error_that_names_it(format):
    """Cut anywhere, or with bytes that changed: an image, or an ImageError, never anything else."""
    if format not in Image.registered_extensions().values():
        pytest.skip("this Pillow lacks the format")
    whole = saved(Image.fromarray(disc()[..., :3]), format)
    rng = np.random.default_rng(1)
    for trial in range(40):
        content = bytearray(whole[: rng.integers(len(whole))] if trial % 2 else whole)
        for place in rng.integers(0, max(len(content), 1), 5 if content else 0):
            content[place] = rng.integers(256)
        try:
            decoded(bytes(content))
        except ImageError as error:
            assert str(error).startswith("a/b.png is not a readable image (")


def test_errors_of_decoders_without_a_text_and_of_memory_name_the_file(monkeypatch):
    assert "not a readable image" in refusal(dds() + bytes(60))
    for error in (MemoryError(), RuntimeError("frame 0"), NotImplementedError("pixel format")):
        monkeypatch.setattr(Image, "open", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert f"({str(error) or 'MemoryError'})" in refusal(b"")


def test_bombs_folders_and_dead_links_name_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "decompression bomb" in refusal(saved(Image.fromarray(disc())))
    (tmp_path / "dead.png").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.png").mkdir()
    for name in ("dead.png", "folder.png"):
        with pytest.raises(ImageError, match=rf"{name} is not a readable image"):
            read_image(tmp_path / name)
