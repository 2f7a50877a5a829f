"""From the pixels that a file stores to RGB with 8 bits per channel, by one rule for every source of images.

    1, L, RGB, P, CMYK, YCbCr, HSV   as Pillow converts them
    16 bits per channel              v becomes (v + 128) // 257: 0 stays 0, 65535 becomes 255, with equal steps between
    32-bit integers and floats       accepted if all values lie in 0..255; their scale is unknown otherwise
    alpha, transparent colors        composited over the background
    anything else                    refused by its name

Pillow alone clips 16-bit gray to white, truncates 16-bit colors, and drops alpha, so that hidden pixels appear.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
GRAY_16_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
MAX_16 = 65535

# Layouts of stored pixels, in Pillow's names. The layout of the other byte order reads the low bytes of 16-bit colors.
OTHER_ORDER = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
COLORS_16 = frozenset(f"{mode};16{order}" for mode in ("RGB", "RGBA", "RGBX") for order in OTHER_ORDER)
GRAY_ALPHA_16 = "LA;16B"
REFUSED_LAYOUTS = {
    **{f"RGBa;16{order}": "16-bit colors that are multiplied by alpha" for order in OTHER_ORDER},
    **{f"CMYK;16{order}": "CMYK with 16 bits per channel" for order in OTHER_ORDER},
    "I;12": "12 bits per pixel",
}
LEVEL_OF_LAYOUT = {"L;2": 85, "L;4": 17}  # gray levels of one step, in files with fewer than 8 bits

# Tags of TIFF files, and values of theirs.
TIFF_BITS = 258
TIFF_PHOTOMETRIC = 262
TIFF_WHITE_IS_ZERO = 0
TIFF_PLANES = 284
TIFF_ONE_PLANE_PER_CHANNEL = 2

# EXIF orientation -> what turns the stored pixels upright (EXIF 2.3, section 4.6.4).
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """How stored pixels become RGB, as far as it can be chosen."""

    background: str = "white"  # behind transparent pixels; a color that Pillow knows
    orientation: str = "as_stored"  # or upright, which follows the EXIF orientation

    def suffix(self) -> str:
        """What an identity of images says of it: nothing for the defaults, so that older identities stay valid."""
        changed = [
            f" {name}={value}"
            for name, value in (("background", self.background), ("orientation", self.orientation))
            if value != getattr(Decoding, name)
        ]
        return "".join(changed)

    def prepare(self, image: Image.Image) -> None:
        """Sets up an opened file before its pixels are decoded."""


DEFAULT_DECODING = Decoding()


class PixelError(ValueError):
    """Pixels whose meaning is unknown; the message says which."""


def rgb_of(open_file: Callable[[], Image.Image], decoding: Decoding = DEFAULT_DECODING) -> Image.Image:
    """Decodes the image that `open_file` opens; it is called twice for 16-bit colors.

    Raises PixelError for pixels of unknown meaning, and whatever the decoder raises for damaged files.
    """
    with open_file() as image:
        decoding.prepare(image)
        layout = stored_layout(image)
        if layout in REFUSED_LAYOUTS:
            raise PixelError(f"{REFUSED_LAYOUTS[layout]} cannot be read")
        if _has_planes_of_16_bits(image):
            raise PixelError("16-bit colors with one plane per channel cannot be read")
        if layout in COLORS_16:
            picture = _colors_16(image, open_file, layout)
        elif layout == GRAY_ALPHA_16:
            picture = _gray_alpha_16(image)
        else:
            image.load()
            picture = _converted(image, layout)

        # The orientation stands in the file, which may store it behind the pixels.
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation)) if decoding.orientation == "upright" else None

    picture = _composited(picture, decoding.background)
    return picture if turn is None else picture.transpose(turn)


def stored_layout(image: Image.Image) -> str:
    """How the pixels of an opened file are stored, in Pillow's names ("raw mode"); empty where it does not say."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if isinstance(layout, str) else ""


def _converted(image: Image.Image, layout: str) -> Image.Image:
    """A loaded image as RGB, or as RGBA where it has transparent pixels."""
    is_gray_16 = image.mode in GRAY_16_MODES
    if image.mode == "I" and (image.format == "PPM" or layout in GRAY_16_MODES):
        is_gray_16 = True  # Pillow widens them
    if is_gray_16:
        return _gray_16(image)
    if image.mode in ("I", "F"):
        return _gray_32(image)
    if image.mode not in PLAIN_MODES | ALPHA_MODES:
        raise PixelError(f"pixels of mode {image.mode} cannot be read")

    if image.has_transparency_data:
        level = LEVEL_OF_LAYOUT.get(layout)
        if level is not None and "transparency" in image.info:
            image.info["transparency"] *= level
        return image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _composited(picture: Image.Image, background: str) -> Image.Image:
    """RGB or RGBA -> RGB."""
    if picture.mode == "RGB":
        return picture
    canvas = Image.new("RGBA", picture.size, background)
    return Image.alpha_composite(canvas, picture).convert("RGB")


# ------------------------------------------------------------------------------------------------ 16 bits
def _eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, rounded to the nearest."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _picture(channels: np.ndarray, is_transparent: np.ndarray | None = None) -> Image.Image:
    """uint8 (H,W,3) or (H,W,4) as a picture; `is_transparent` (H,W) marks pixels that are not to be seen."""
    if is_transparent is not None:
        alpha = np.where(is_transparent, 0, 255).astype(np.uint8)
        channels = np.concatenate([channels, alpha[..., None]], axis=2)
    return Image.fromarray(channels)


def _gray_16(image: Image.Image) -> Image.Image:
    """Loaded 16-bit gray; a transparent gray level of the file is honored."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    is_transparent = None if transparent is None else values == transparent
    if _white_is_zero(image):
        values = MAX_16 - values
    return _picture(np.repeat(_eight_bits(values)[..., None], 3, axis=2), is_transparent)


def _colors_16(image: Image.Image, open_file: Callable[[], Image.Image], layout: str) -> Image.Image:
    """16-bit colors. Pillow keeps the high bytes; the file read in the other byte order gives the low ones."""
    image.load()
    with open_file() as other:
        _set_layout(other, layout[:-1] + OTHER_ORDER[layout[-1]])
        other.load()
        low = np.asarray(other)
    values = np.asarray(image).astype(np.uint16) * 256 + low

    transparent = image.info.get("transparency")
    is_transparent = None if transparent is None else (values == np.array(transparent)).all(axis=2)
    return _picture(_eight_bits(values), is_transparent)


def _gray_alpha_16(image: Image.Image) -> Image.Image:
    """16-bit gray with alpha: the four bytes of a pixel are read as if they were four channels."""
    _set_layout(image, "RGBA")
    image.load()
    stored = np.asarray(image).astype(np.uint16)
    gray = _eight_bits(stored[..., 0] * 256 + stored[..., 1])
    alpha = _eight_bits(stored[..., 2] * 256 + stored[..., 3])
    return _picture(np.stack([gray, gray, gray, alpha], axis=2))


def _set_layout(image: Image.Image, layout: str) -> None:
    """Makes an opened file read its pixels in another layout of the same size."""
    tiles = []
    for decoder, extents, offset, arguments in image.tile:
        changed = (layout, *arguments[1:]) if isinstance(arguments, tuple) else layout
        tiles.append((decoder, extents, offset, changed))
    image.tile = tiles


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF file counts from white to black, which Pillow minds for 8 bits only."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO


def _has_planes_of_16_bits(image: Image.Image) -> bool:
    """Whether a TIFF file stores 16-bit colors plane by plane, which Pillow takes for 8 bits."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, ())
    return tags.get(TIFF_PLANES) == TIFF_ONE_PLANE_PER_CHANNEL and len(bits) > 1 and max(bits) > 8


# ------------------------------------------------------------------------------------------------ 32 bits
def _gray_32(image: Image.Image) -> Image.Image:
    """Loaded 32-bit integers or floats in 0..255, rounded.

    Raises PixelError for other values, and for fractions in 0..1, which may stand for 0..1 or for 0..255.
    """
    kind = "integers" if image.mode == "I" else "floats"
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise PixelError(f"32-bit {kind} with NaN or infinite values cannot be read")
    low = values.min()
    high = values.max()
    if low < 0 or high > 255:
        raise PixelError(f"32-bit {kind} from {low:g} to {high:g} cannot be read; accepted: all values in 0..255")
    if high <= 1 and (values != np.round(values)).any():
        raise PixelError(f"32-bit {kind} from {low:g} to {high:g} may lie in 0..1 or in 0..255; store 8 or 16 bits")
    if _white_is_zero(image):
        raise PixelError(f"32-bit {kind} from white to black cannot be read")
    gray = np.floor(values.astype(np.float64) + 0.5).astype(np.uint8)
    return _picture(np.repeat(gray[..., None], 3, axis=2))
