"""The names of an original and its reconstruction: those of the image's own file, where it has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from engine.data.base import ImageSource
from engine.data.folders import FileSource
from engine.data.images import printable

ORIGINAL = "_gt"  # behind the name of an original
RESERVED = ("grid",)  # names that the folder has for something else
MAX_NAME = 200  # bytes; file systems take 255, and a score and a suffix follow


def pair_names(source: ImageSource, count: int) -> list[str]:
    """The names of the pairs of the first `count` images, without suffix, as paths below the folder of the pictures.

    An image of a file is called like the file and lies in the same sub-folder: `cats/tom`. Where the pictures of two
    images would have one name, both also have their number: `tom_000007`. Images without files have numbers alone.
    """
    numbers = [f"{number:06d}" for number in range(count)]
    if not isinstance(source, FileSource):
        return numbers

    # A file's path without its suffix.
    paths = [PurePosixPath(printable(source.names[number])) for number in range(count)]
    names = [
        str(path.with_suffix("") if len(path.name.encode()) <= MAX_NAME else path.with_name(number))
        for path, number in zip(paths, numbers, strict=True)
    ]

    # Names that would meet. Numbers may meet a name as well, which is left to numbers alone.
    is_shared = _shared(names)
    told_apart = [f"{name}_{numbers[i]}" if is_shared[i] else name for i, name in enumerate(names)]
    return numbers if any(_shared(told_apart)) else told_apart


def _shared(names: Sequence[str]) -> list[bool]:
    """Whether the pictures of each name would meet those of another one; some file systems know no upper case."""
    files = [(name.casefold(), f"{name}{ORIGINAL}".casefold()) for name in names]
    users = Counter([*RESERVED, *(file for pair in files for file in pair)])
    folders = {str(folder).casefold() for name in names for folder in PurePosixPath(name).parents}
    return [any(users[file] > 1 or f"{file}.png" in folders for file in pair) for pair in files]
