"""Small image files for every decoder of the installed Pillow: written by Pillow, or by hand where it only reads."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 13, 9

# Options of files that are stored in ways of their own.
VARIANTS = {
    "JPEG": [{}, {"progressive": True}, {"subsampling": 0, "quality": 30}, {"comment": b"x" * 40}],
    "PNG": [{}, {"compress_level": 0}, {"bits": 4}],
    "TIFF": [{}, *({"compression": c} for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "zstd"))],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}, {"interlace": 0}],
    "BMP": [{}],
    "JPEG2000": [{}, {"irreversible": True}],
    "DDS": [{}, {"pixel_format": "DXT1"}, {"pixel_format": "DXT5"}, {"pixel_format": "BC5"}],
    "TGA": [{}, {"compression": "tga_rle"}],
    "ICO": [{}, {"bitmap_format": "bmp"}],
    "AVIF": [{"speed": 10, "max_threads": 1}],
}
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "I", "F", "CMYK")


def _picture(mode: str) -> Image.Image:
    """A picture that no two decoders read alike by chance."""
    rng = np.random.default_rng(7)
    rgb = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH)).astype(kind))
    return rgb if mode == "RGBA" else rgb.convert("RGB").convert(mode)


def _written() -> Iterator[tuple[str, bytes]]:
    """(format, content) of all that Pillow writes and reads."""
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in MODES:
            for options in VARIANTS.get(kind, [{}]):
                out = io.BytesIO()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        _picture(mode).save(out, kind, **options)
                except Exception:  # this format has no such mode or option
                    continue
                yield kind, out.getvalue()
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):  # several frames; EXIF with an orientation
        out = io.BytesIO()
        exif = Image.Exif()
        exif[274] = 6
        _picture("RGB").save(out, kind, save_all=True, append_images=[_picture("RGB")], exif=exif)
        yield kind, out.getvalue()


def _by_hand() -> Iterator[tuple[str, bytes]]:
    """Formats that Pillow only reads, as small as they can be."""
    rows = bytes(range(64))
    ico, pcx = io.BytesIO(), io.BytesIO()
    _picture("RGBA").save(ico, "ICO", bitmap_format="bmp")
    _picture("L").save(pcx, "PCX")
    yield "CUR", ico.getvalue()[:2] + b"\2\0" + ico.getvalue()[4:]
    yield "DCX", struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx.getvalue()
    yield "SUN", struct.pack(">8I", 0x59A66A95, 8, 8, 8, 64, 1, 0, 0) + rows
    yield "XVTHUMB", b"P7 332\n#END_OF_COMMENTS\n8 8 255\n" + rows
    yield "XPM", b'/* XPM */\nstatic char *x[] = {\n"2 2 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"ab",\n"ba"\n};\n'
    cards = [b"SIMPLE  =                    T", b"BITPIX  =                    8", b"NAXIS   =                    2",
             b"NAXIS1  =                    8", b"NAXIS2  =                    8", b"END"]  # fmt: skip
    yield "FITS", b"".join(card.ljust(80) for card in cards).ljust(2880) + rows.ljust(2880, b"\0")
    yield "GBR", struct.pack(">5I", 28, 2, 8, 8, 1) + b"GIMP\0\0\0\1" + rows
    psd = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 1, 8, 8, 8, 1) + struct.pack(">III", 0, 0, 0) + b"\0\0" + rows
    yield "PSD", psd
    fli = struct.pack("<IHHHHHHI", 300, 0xAF11, 1, 8, 8, 8, 3, 5).ljust(128, b"\0")
    yield "FLI", fli + struct.pack("<IHH8x", 90, 0xF1FA, 1) + struct.pack("<IH", 70, 16) + rows
    yield "FTEX", struct.pack("<4sI4I", b"FTEX", 0, 8, 8, 1, 1) + struct.pack("<III", 1, 32, 64) + rows * 3
    yield (
        "PIXAR",
        (b"\200\350\0\0".ljust(416, b"\0") + struct.pack("<HH4xHH", 8, 8, 14, 0)).ljust(1024, b"\0") + rows * 3,
    )
    yield "IMT", b"*\nwidth 8\nheight 8\n*\x0c" + rows
    yield "PCD", (b"\xff" * 2048 + b"PCD_").ljust(96 * 2048, b"\7")
    yield (
        "IPTC",
        b"\x1c\x03\x3c\0\2\1\0\x1c\x03\x14\0\2\0\x08\x1c\x03\x1e\0\2\0\x08\x1c\x03\x78\0\1\1\x1c\x08\x0a\0\x40" + rows,
    )
    yield "MCIDAS", b"\0\0\0\0\0\0\0\4" + struct.pack(">62I", *([8] * 62)) + rows * 8
    for kind, magic in {"BLP": b"BLP2", "MPEG": b"\0\0\1\xb3", "SPIDER": b"", "HDF5": b"\x89HDF\r\n\x1a\n"}.items():
        yield kind, magic + rows * 4


@lru_cache(maxsize=1)
def seed_files() -> list[tuple[str, bytes]]:
    """(format, content) of all seeds, at least one for every decoder of this Pillow."""
    Image.init()
    files = [*_written(), *_by_hand()]
    covered = {kind for kind, _ in files}
    files += [(kind, kind.encode() + bytes(range(200))) for kind in sorted(set(Image.OPEN) - covered)]
    return files
