"""Reads each image of a folder once: sizes, kinds, content, pixels, and how long decoding takes.

Threads share the work: Pillow and the digests leave the interpreter free while they compute.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from engine.cores import usable_cores
from engine.data.decoding import Decoding
from engine.data.header import ImageHeader, read_header
from engine.data.images import ImageError, decode_image, printable
from engine.data.samples import fixed_choice

ORIENTATION = "upright"  # of `data.orientation` in the recipes for own pictures
DECODING = Decoding(orientation=ORIENTATION)  # two pictures are the same if they look the same
SHOWN_BROKEN = 200  # characters of a reason


@dataclass(frozen=True)
class ScannedImage:
    """A readable image."""

    name: str  # relative to the folder
    header: ImageHeader
    num_bytes: int
    file_digest: str  # SHA-256 of the file
    pixel_digest: str  # SHA-256 of size and pixels, as they are to be seen
    seconds: float  # of one core, to decode it


@dataclass(frozen=True)
class BrokenImage:
    """A file that has the suffix of an image and cannot be read."""

    name: str
    reason: str


@dataclass
class Scan:
    """The images of a folder that were read."""

    images: list[ScannedImage] = field(default_factory=list)
    broken: list[BrokenImage] = field(default_factory=list)
    num_images: int = 0  # of the folder; more than were read where a limit says so

    @property
    def num_read(self) -> int:
        """How many files were opened."""
        return len(self.images) + len(self.broken)


def scan_image(folder: Path, name: str) -> ScannedImage | BrokenImage:
    """Reads one image."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        return BrokenImage(name, error.strerror or type(error).__name__)

    start = time.thread_time()
    try:
        picture = decode_image(lambda: content, printable(name), DECODING)
        seconds = time.thread_time() - start
        header = read_header(content)
    except ImageError as error:
        cause = str(error.__cause__) or type(error.__cause__).__name__
        return BrokenImage(name, "the file is empty" if not content else cause[:SHOWN_BROKEN])

    pixels = hashlib.sha256(repr(picture.size).encode())
    pixels.update(picture.tobytes())
    return ScannedImage(
        name, header, len(content), hashlib.sha256(content).hexdigest(), pixels.hexdigest(), max(seconds, 1e-6)
    )


def scan_folder(folder: Path, names: Sequence[str], limit: int | None = None) -> Scan:
    """Reads the images `names` of a folder, in their order; a random choice of `limit` of them, if there are more.

    Shows progress on a terminal.
    """
    chosen = range(len(names)) if limit is None else fixed_choice(len(names), limit)
    scan = Scan(num_images=len(names))
    with ThreadPoolExecutor(usable_cores()) as threads:
        found = threads.map(lambda index: scan_image(folder, names[index]), chosen)
        for image in tqdm(found, "reading images", len(chosen), unit="image", disable=None):
            if isinstance(image, BrokenImage):
                scan.broken.append(image)
            else:
                scan.images.append(image)
    return scan
