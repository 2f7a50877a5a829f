"""What the file of an image says of itself before its pixels are decoded."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ExifTags

from engine.data.decoding import TURNS, stored_layout
from engine.data.images import open_content

UPRIGHT = 1  # the EXIF orientation of pixels that are stored as they are to be seen
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height


@dataclass(frozen=True)
class ImageHeader:
    """Sizes and kinds of one image."""

    width: int  # pixels, as stored
    height: int
    mode: str  # Pillow's name of the channels; with 16 bits per channel ` 16-bit` behind it
    format: str  # such as JPEG
    orientation: int  # of EXIF, 1..8; 1 = upright, also where the file does not say
    frames: int  # more than 1 of an animation, of which only the first is read

    def size(self, orientation: str) -> tuple[int, int]:
        """Width and height as `data.orientation` (as_stored or upright) shows the image."""
        is_turned = orientation == "upright" and self.orientation in QUARTER_TURNS
        return (self.height, self.width) if is_turned else (self.width, self.height)


def read_header(content: bytes) -> ImageHeader:
    """The header of an image file. Raises PixelError or what the decoder raises where it is none, or is damaged."""
    with open_content(content) as image:
        is_deep = ";16" in stored_layout(image) and ";16" not in image.mode
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return ImageHeader(
            width=image.width,
            height=image.height,
            mode=f"{image.mode} 16-bit" if is_deep else image.mode,
            format=image.format or "unknown",
            orientation=orientation if orientation in TURNS else UPRIGHT,
            frames=getattr(image, "n_frames", 1),
        )
