"""What lies in a folder, or below it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from engine.data.images import IMAGE_SUFFIXES, ImageError, printable
from engine.messages import logger

MACOS_FOLDER = "__MACOSX"  # of archives that were packed there


def is_image_name(name: str) -> bool:
    """Whether a file name has one of the accepted suffixes."""
    stem, _, suffix = name.rpartition(".")
    return bool(stem) and not stem.endswith("/") and f".{suffix.lower()}" in IMAGE_SUFFIXES


def unreadable(path: Path, error: OSError) -> ImageError:
    """What to say of a file or folder that the system refuses."""
    return ImageError(f"{printable(path)} cannot be read ({error.strerror}); mount it, or remove it")


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder. Raises ImageError where that cannot be seen."""
    try:
        return bool(str(path)) and Path(path).is_dir()
    except OSError as error:
        raise unreadable(Path(path), error) from error


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's: caches of editors and notebooks, traces of macOS."""
    return name.startswith(".") or name == MACOS_FOLDER


@dataclass(frozen=True)
class FolderState:
    """What changes when a name is added to a folder, or taken from it."""

    device: int
    inode: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, folder: Path) -> FolderState:
        """That of a folder now. Raises OSError where it cannot be seen."""
        status = folder.stat()
        return cls(status.st_dev, status.st_ino, status.st_mtime_ns)


@dataclass
class Listing:
    """What lies in a folder, or was met below it: names relative to it.

    Names are strings: ImageNet has 1.28 million files, and a path object for each takes longer than to list them.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # files without the suffix of an image
    broken: list[str] = field(default_factory=list)  # links that lead nowhere, pipes and the like
    num_hidden: int = 0
    num_links: int = 0  # links that were followed
    states: dict[str, FolderState] = field(default_factory=dict)  # of the folders that were listed, before they were

    def add(self, other: Listing, below: str) -> None:
        """Adds what the listing of the folder `below` this one holds, except for its folders."""
        self.images += [_joined(below, name) for name in other.images]
        self.others += [_joined(below, name) for name in other.others]
        self.broken += [_joined(below, name) for name in other.broken]
        self.num_hidden += other.num_hidden
        self.num_links += other.num_links
        self.states |= {_joined(below, name): state for name, state in other.states.items()}

    def log(self, folder: Path, num_nested: int = 0) -> None:
        """Says what was left out, and that links were followed."""
        where = printable(folder)
        if self.num_hidden:
            logger.info('%s: left out %d hidden names (".*", %s)', where, self.num_hidden, MACOS_FOLDER)
        if self.others or num_nested:
            logger.warning(
                "%s: left out %d files that are not images, %d nested folders", where, len(self.others), num_nested
            )
        if self.broken:
            logger.warning("%s: left out %d links that lead nowhere, or pipes", where, len(self.broken))
        if self.num_links:
            logger.info("%s: followed %d symbolic links", where, self.num_links)


def _joined(folder: str, name: str) -> str:
    """A name in a folder; either may be empty."""
    return f"{folder}/{name}" if folder and name else folder or name


def by_parts(name: str) -> str:
    """Sorts names as paths are: folder by folder, so that `a/b` comes before `a-b/c`."""
    return name.replace("/", "\0")


def list_folder(folder: Path) -> Listing:
    """Lists one folder in alphabetical order; symbolic links count as what they lead to.

    Raises ImageError if it cannot be read.
    """
    listing = Listing()
    try:
        listing.states[""] = FolderState.of(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(folder, error) from error

    for entry in entries:
        name = entry.name
        if is_hidden(name):
            listing.num_hidden += 1
            continue
        if _is_kind(entry.is_dir):
            listing.folders.append(name)
        elif not _is_kind(entry.is_file):
            listing.broken.append(name)
            continue
        elif is_image_name(name):
            listing.images.append(name)
        else:
            listing.others.append(name)
        listing.num_links += entry.is_symlink()
    return listing


def _is_kind(question: Callable[[], bool]) -> bool:
    """Asks `is_dir` or `is_file` of an entry; a link in a circle or to a forbidden place is neither."""
    try:
        return question()
    except OSError:
        return False


def list_below(root: Path) -> Listing:
    """Lists everything below a folder. Links to folders are entered, except for those that lead back to where one is.

    Raises ImageError for a folder that cannot be read.
    """
    total = Listing()
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]  # folders, with those above them
    bar = tqdm(desc="listing images", unit="folder", leave=False, disable=None)
    while waiting:
        bar.update()
        below, ancestors = waiting.pop()
        listing = list_folder(root / below)

        # A link may lead back to where one is.
        state = listing.states[""]
        place = (state.device, state.inode)
        if place in ancestors:
            logger.warning("%s leads back to a folder above it; not entered again", printable(root / below))
            total.num_links -= 1
            continue

        total.add(listing, below)
        waiting += [(_joined(below, name), ancestors | {place}) for name in listing.folders]

    bar.close()
    total.images.sort(key=by_parts)
    return total
